"""Danger: a metric that flatters a converted model: ties counted as hits, NaN as a class, a scaled output as equal."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from edgewise_converter.errors import MetricError
from edgewise_converter.metrics.comparison import compare_outputs
from edgewise_converter.metrics.evaluation import METRICS, default_metric, evaluate, lookup
from edgewise_converter.metrics.ranks import auc
from edgewise_converter.metrics.score import LARGEST, Score
from edgewise_converter.metrics.source_check import check_source
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

RNG = np.random.default_rng(5)
LOGITS = RNG.normal(size=(200, 5)).astype(np.float32)
Y = LOGITS.argmax(1)
labelled = st.lists(
    st.tuples(st.sampled_from([0, 1]), st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, width=32))),
    min_size=2,
    max_size=60,
).filter(lambda rows: {y for y, _ in rows} == {0, 1})


@given(labelled)
def test_auc_is_that_of_scikit_learn_ties_and_all(rows: list[tuple[int, float]]) -> None:
    y, scores = (np.array(column) for column in zip(*rows, strict=True))
    assert auc(scores, y) == pytest.approx(roc_auc_score(y, scores), abs=1e-12)


@given(labelled)
def test_auc_of_turned_scores_is_the_complement(rows: list[tuple[int, float]]) -> None:
    y, scores = (np.array(column) for column in zip(*rows, strict=True))
    assert auc(scores, y) + auc(-scores, y) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_never_helps(broken: float) -> None:
    scores, y = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1])
    assert auc(scores, y) == 1.0
    for i in range(4):
        damaged = scores.copy()
        damaged[i] = broken
        assert auc(damaged, y) == 0.5, "the damaged sample loses against all of the other class"


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (np.array([1, 1, 1]), "only 1"),
        (np.array([0, 0, 0]), "only 0"),
        (np.array([0, 1, 2]), "0, 1, 2"),
        (np.array([0, 1, -1]), "-1"),
        (np.array([[0], [1], [0]]), "[3, 1]"),
        (np.array(["a", "b", "c"]), "labels are <U1"),
        (np.array([0, 1]), "3 scores and 2 labels"),
        (np.array([]), "none"),
    ],
)
def test_wrong_labels_for_auc_are_told(y: Any, says: str) -> None:
    with pytest.raises(MetricError) as caught:
        auc(np.array([0.1, 0.2, 0.3]), y)
    assert says in str(caught.value)


def score(metric: str, outputs: Any, reference: Any, y: Any = None, feeds: Any = None, task: str = "") -> Score:
    return evaluate(metric, outputs, reference, y, feeds or {}, task=task)


def test_top1_counts_right_classes_and_a_nan_is_never_right() -> None:
    damaged = LOGITS.copy()
    damaged[:50, 0] = np.nan
    found = score("top1", {"o": damaged}, {"o": LOGITS}, Y, task="classification")
    assert (found.value, found.float_value, found.drop, found.labelled) == (0.75, 1.0, 25.0, True)
    assert found.outputs[0].agreement == 0.75
    assert found.outputs[0].cosine == -1.0 and found.outputs[0].relative_error == LARGEST
    assert msgspec.json.decode(msgspec.json.encode(found), type=Score) == found, "infinite errors survive JSON"


def test_top1_takes_the_output_that_has_classes() -> None:
    both = {"state": RNG.normal(size=(200, 1)).astype(np.float32), "o": LOGITS}
    assert score("top1", both, both, Y).value == 1.0
    wide = {"embedding": RNG.normal(size=(200, 64)).astype(np.float32), **both, "more": -LOGITS}
    assert score("top1", wide, wide, Y).value == 1.0, "the narrowest that has the classes, the first of equal ones"
    lacking = {"a": LOGITS[:, :2], "b": LOGITS[:, :3]}
    with pytest.raises(MetricError, match=r"classes 0 to 4.*--metric agreement"):
        score("top1", lacking, lacking, Y)


@pytest.mark.parametrize("y", [Y[:-1], np.where(Y == 0, 5, Y), np.where(Y == 0, -1, Y), Y.astype(np.float32)])
def test_top1_refuses_labels_that_are_not_its_classes(y: Any) -> None:
    with pytest.raises(MetricError):
        score("top1", {"o": LOGITS}, {"o": LOGITS}, y)


def test_a_single_value_is_a_class_or_a_probability() -> None:
    chance = np.array([[0.2], [0.7], [0.4], [0.9]], np.float32)
    assert score("top1", {"p": chance}, {"p": chance}, np.array([0, 1, 1, 1])).value == 0.75
    named = np.array([2, 0, 1, 2], np.int64)
    for kind in (np.int64, np.float32):
        found = named.astype(kind)
        assert score("top1", {"c": found}, {"c": found}, np.array([2, 0, 1, 1])).value == 0.75


def test_a_single_logit_is_a_class_by_its_sign_as_the_source_says() -> None:
    logit = RNG.normal(0, 20, (100, 1)).astype(np.float32)
    y = (logit[:, 0] > 0).astype(np.int64)
    assert score("top1", {"l": logit}, {"l": logit}, y).value == 1.0
    signs = np.sign(logit)
    assert score("top1", {"l": signs}, {"l": signs}, y).value == 1.0
    small = np.full((100, 1), 0.3, np.float32)  # in [0, 1], and a logit all the same
    assert score("top1", {"l": small}, {"l": logit}, y).value == pytest.approx(y.mean())
    chance = (1 / (1 + np.exp(-logit))).astype(np.float32)
    over = np.where(chance > 0.5, 1 + 1 / 256, 0.4).astype(np.float32)  # a step beyond 1 makes no logits of it
    assert score("top1", {"p": over}, {"p": chance}, y).value == 1.0
    graded = np.array([[0.2], [2.9], [1.6]], np.float32)
    assert score("top1", {"g": graded}, {"g": graded}, np.array([0, 3, 2])).value == 1.0, "numbers of classes"


def test_auc_score_takes_one_score_or_two_classes() -> None:
    y = (RNG.random(300) < 0.4).astype(np.int64)
    logit = (y + RNG.normal(size=300)).astype(np.float32)
    two = np.stack([-logit, logit], 1)
    expected = roc_auc_score(y, logit)
    assert score("auc-score", {"s": logit[:, None]}, {"s": logit[:, None]}, y).value == pytest.approx(expected)
    assert score("auc-score", {"s": two}, {"s": two}, y).value == pytest.approx(expected)
    both = {"embedding": LOGITS, "s": logit[:, None]}
    assert score("auc-score", both, both, y).value == pytest.approx(expected)
    with pytest.raises(MetricError, match="one score a sample"):
        score("auc-score", {"s": LOGITS}, {"s": LOGITS}, (LOGITS[:, 0] > 0).astype(int))


def test_auc_of_a_reconstruction_by_sample_and_by_recording() -> None:
    x = RNG.normal(size=(120, 8)).astype(np.float32)
    y = np.repeat([0, 1, 0, 1], 30)
    error = np.where(y == 1, 1.0, 0.7)[:, None] * RNG.normal(size=x.shape)
    out = (x + error).astype(np.float32)
    found = score("auc-reconstruction", {"r": out.reshape(120, 2, 4)}, {"r": x.reshape(120, 2, 4)}, y, {"x": x})
    assert found.value == pytest.approx(roc_auc_score(y, ((out - x) ** 2).mean(1)))
    assert found.float_value == 0.5, "a source that gives its input back tells nothing"
    recordings = score("auc-reconstruction", {"r": out}, {"r": x}, np.array([0, 1, 0, 1]), {"x": x})
    assert recordings.value == 1.0
    with pytest.raises(MetricError, match="120 samples and 7 labels"):
        score("auc-reconstruction", {"r": out}, {"r": x}, np.array([0, 1, 0, 1, 0, 1, 1]), {"x": x})
    with pytest.raises(MetricError, match="as many values as one input"):
        score("auc-reconstruction", {"r": LOGITS}, {"r": LOGITS}, (LOGITS[:, 0] > 0).astype(int), {"x": x})


def test_agreement_of_classes_is_top1_and_of_numbers_is_r_squared() -> None:
    noisy = LOGITS + 0.3 * RNG.normal(size=LOGITS.shape).astype(np.float32)
    classes = score("agreement", {"o": noisy}, {"o": LOGITS}, task="classification")
    assert classes.value == np.mean(noisy.argmax(1) == Y) < 1.0
    assert classes.outputs[0].basis == "top-1" and not classes.labelled and "without labels" in classes.basis
    numbers = score("agreement", {"o": noisy}, {"o": LOGITS}, task="regression")
    columns = 1 - ((noisy - LOGITS) ** 2).mean(0) / LOGITS.var(0)
    assert numbers.value == pytest.approx(columns.min(), abs=1e-5) and numbers.outputs[0].basis == "r-squared"
    vector = score("agreement", {"o": noisy}, {"o": LOGITS}, task="embedding")
    assert vector.value == pytest.approx(1 - ((noisy - LOGITS) ** 2).mean() / LOGITS.var(0).mean(), abs=1e-5)


def lost(want: Any, have: Any, task: str = "other") -> float:
    return 1.0 - compare_outputs({"o": have}, {"o": want}, task)[0].agreement


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("task", ["regression", "other"])
def test_a_channel_that_is_lost_is_not_hidden_by_another(axis: int, task: str) -> None:
    want = np.moveaxis(RNG.normal(0, 1.5, (50, 8, 8, 2)), -1, axis).astype(np.float32)
    offset = np.moveaxis(np.array([0.0, 1000.0], np.float32).reshape(1, 1, 1, 2), -1, axis)
    flat = np.broadcast_to(offset, want.shape)
    assert lost(want + offset, flat, task) == pytest.approx(1.0, abs=0.01)
    for scale in (2000.0, 1 / 2000.0):  # one unit or another
        unit = np.moveaxis(np.array([1.0, scale], np.float32).reshape(1, 1, 1, 2), -1, axis)
        one = np.moveaxis(np.array([1.0, 0.0], np.float32).reshape(1, 1, 1, 2), -1, axis)
        assert lost(want * unit, want * unit * one, task) > 0.2


def test_one_number_a_sample_is_held_to_its_spread_and_not_its_size() -> None:
    kelvin = (300 + RNG.normal(0, 0.15, (200, 1))).astype(np.float32)
    assert lost(kelvin, np.full_like(kelvin, kelvin.mean())) == pytest.approx(1.0, abs=0.01)
    assert lost(kelvin, kelvin + np.float32(0.001)) < 1e-3


def test_a_column_that_says_nothing_fails_none() -> None:
    want = RNG.normal(0, 2.0, (200, 4))
    noise = 0.01 * RNG.normal(size=want.shape)
    for odd in (0.0, 5.0, 1e-9 * RNG.normal(size=200), 5.0 + 1e-7 * RNG.normal(size=200)):
        want[:, 1] = odd
        assert lost(want.astype(np.float32), (want + noise).astype(np.float32)) < 1e-3
    pixels = 1 / (1 + np.exp(-want))
    pixels[:, 1] = 1e-4 * RNG.random(200)  # a tail of sigmoid that an eight-bit step cannot show
    assert lost(pixels, np.round(pixels * 256) / 256) < 5e-3
    assert lost(pixels, np.round(pixels * 256) / 256, "regression") > 5e-3, "a quantity of its own"
    pixels[:, 1] = 2.0
    broken = pixels.copy()
    broken[:, 1] = 0.0
    assert lost(pixels, broken) == 1.0, "a constant is held to its size"


@pytest.mark.parametrize("shape", [(1, 10), (3, 4), (7,), (2, 2, 2, 2), (40, 1, 1)])
@pytest.mark.parametrize("task", ["embedding", "other"])
def test_r_squared_has_a_value_for_few_numbers_and_odd_shapes(shape: tuple[int, ...], task: str) -> None:
    want = RNG.normal(size=shape)
    for array in (want, np.zeros(shape), 1e150 * want, 1e-150 * want):
        assert lost(array, array, task) == 0.0
        assert lost(array, array + np.abs(array).max() + 1, task) == 1.0


def test_probabilities_are_known_as_classes_without_a_task() -> None:
    exp = np.exp(LOGITS)
    soft = (exp / exp.sum(1, keepdims=True)).astype(np.float32)
    assert compare_outputs({"o": soft}, {"o": soft}, "other")[0].basis == "top-1"
    assert compare_outputs({"o": LOGITS}, {"o": LOGITS}, "other")[0].basis == "r-squared"


def test_a_scaled_output_agrees_in_angle_and_not_in_value() -> None:
    found = compare_outputs({"o": 2 * LOGITS}, {"o": LOGITS}, "embedding")[0]
    assert found.cosine == pytest.approx(1.0) and found.relative_error == pytest.approx(1.0)
    assert found.agreement == pytest.approx(0.0, abs=0.01)


def test_integer_outputs_agree_where_they_are_equal() -> None:
    ids = RNG.integers(0, 9, (100, 3))
    other = ids.copy()
    other[:30, 1] += 1
    found = compare_outputs({"ids": other}, {"ids": ids}, "classification")[0]
    assert (found.basis, found.agreement, found.max_error) == ("equal elements", 0.9, 1.0)


def test_the_worst_of_several_outputs_counts() -> None:
    bad = -LOGITS
    found = score("agreement", {"a": LOGITS, "b": bad}, {"a": LOGITS, "b": LOGITS}, task="other")
    assert [o.agreement for o in found.outputs] == [1.0, 0.0] and found.value == 0.0 and found.drop == 100.0
    assert found.cosine == pytest.approx(-1.0) and found.relative_error == pytest.approx(2.0)


@pytest.mark.parametrize("constant", [0.0, 0.5, 1e30, 1e-30])
def test_constant_and_extreme_outputs_have_finite_figures(constant: float) -> None:
    flat = np.full((10, 4), constant, np.float64)
    same = compare_outputs({"o": flat}, {"o": flat}, "")[0]
    assert (same.agreement, same.relative_error, same.cosine) == (1.0, 0.0, 1.0)
    other = compare_outputs({"o": flat + 1}, {"o": flat}, "")[0]
    assert np.isfinite([other.agreement, other.relative_error, other.cosine, other.max_error]).all()


@pytest.mark.parametrize(
    ("have", "want", "says"),
    [
        ({}, {"o": LOGITS}, "missing"),
        ({"o": LOGITS[:, :4]}, {"o": LOGITS}, r"\[200, 4\]"),
        ({"o": LOGITS}, {}, "no outputs"),
        ({"o": LOGITS[:0]}, {"o": LOGITS[:0]}, "no samples"),
        ({"o": LOGITS}, {"o": LOGITS * np.float32(np.nan)}, "own output 'o' is NaN"),
        ({"o": LOGITS.astype(str)}, {"o": LOGITS}, "numbers are compared"),
    ],
)
def test_what_cannot_be_compared_is_told(have: Any, want: Any, says: str) -> None:
    with pytest.raises(MetricError, match=says):
        compare_outputs(have, want, "")


def test_metrics_are_found_by_name() -> None:
    assert [m for m in METRICS if METRICS[m].needs_labels] == ["top1", "auc-score", "auc-reconstruction"]
    assert all(METRICS[m].title for m in METRICS)
    with pytest.raises(MetricError, match="top1, auc-score, auc-reconstruction, agreement"):
        lookup("f1")
    with pytest.raises(MetricError, match="needs labels"):
        score("top1", {"o": LOGITS}, {"o": LOGITS})
    assert default_metric("classification", True) == "top1"
    assert default_metric("classification", False) == default_metric("regression", True) == "agreement"


def test_a_source_that_answers_no_numbers_is_one_clear_error() -> None:
    broken = LOGITS.copy()
    broken[3:40, 2] = np.nan
    with pytest.raises(MetricError, match=r"'o' is NaN or infinite on 37 of the 200 .* first on sample 3"):
        check_source("agreement", {"fine": LOGITS, "o": broken}, None, {})
    assert check_source("agreement", {"o": LOGITS, "ids": Y}, None, {}) == ()


def test_a_source_that_is_right_is_not_doubted_and_one_at_chance_is() -> None:
    assert check_source("top1", {"o": LOGITS}, Y, {}) == ()
    (note,) = check_source("top1", {"o": LOGITS}, (Y + 1) % 5, {})
    assert "top1 0.0 %" in note and "from 0" in note
    (note,) = check_source("top1", {"o": LOGITS}, np.full(200, 3), {})
    assert "all held-out labels are the class 3" in note
    y = (LOGITS[:, 0] > 0).astype(np.int64)
    assert check_source("auc-score", {"o": LOGITS[:, :1]}, y, {}) == ()
    (note,) = check_source("auc-score", {"o": LOGITS[:, :1]}, 1 - y, {})
    assert "auc-score 0.0 %" in note and "label 1" in note


def test_which_output_the_labels_judge_is_said() -> None:
    both = {"embedding": RNG.normal(size=(200, 64)).astype(np.float32), "logits": LOGITS}
    (note,) = check_source("top1", both, Y, {})
    assert "'logits' alone" in note and "not 'embedding'" in note and "--metric agreement" in note
    with pytest.raises(MetricError, match="--metric agreement"):
        check_source("top1", both, np.full(200, 64), {})
