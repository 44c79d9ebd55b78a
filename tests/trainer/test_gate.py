"""Danger: a model that misses its bound, or whose figure is not a number, is promoted."""

from __future__ import annotations

import numpy as np
import pytest
from edgewise_trainer.comparison import PairedComparison, compare, mcnemar_exact
from edgewise_trainer.config import FederationSection, GateSection
from edgewise_trainer.errors import DataError
from edgewise_trainer.evaluation import Evaluation
from edgewise_trainer.gate import check, judge_aggregate, judge_run, verdict
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

RATIO = st.floats(0, 1)
RIGHT = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=120)


def evaluation_of(predicted: list[int], true: list[int], classes: int = 3) -> Evaluation:
    logits = np.eye(classes, dtype=np.float32)[predicted] * 4
    return Evaluation(logits=logits, y=np.array(true), labels=tuple(str(n) for n in range(classes)))


@given(value=RATIO, bound=RATIO)
def test_bounds_are_inclusive_and_opposite(value: float, bound: float) -> None:
    low, high = check("a", value, "at least", bound), check("a", value, "at most", bound)
    assert low.passed == (value >= bound)
    assert high.passed == (value <= bound)
    assert low.passed or high.passed


@given(direction=st.sampled_from(["at least", "at most"]), bound=st.floats(allow_nan=True))
def test_not_a_number_never_passes(direction: str, bound: float) -> None:
    assert not check("a", float("nan"), direction, bound).passed  # type: ignore[arg-type]
    assert not check("a", 0.5, direction, float("nan")).passed  # type: ignore[arg-type]


@given(st.lists(st.booleans(), max_size=6))
def test_one_failed_check_fails_the_gate(outcomes: list[bool]) -> None:
    checks = [check(str(i), 1.0, "at least", 0.5 if good else 2.0) for i, good in enumerate(outcomes)]
    gate = verdict(*checks)
    assert gate.passed == all(outcomes)
    assert gate.checks == tuple(checks)


def test_each_bound_of_a_run_can_fail_it() -> None:
    evaluation = evaluation_of([0, 0, 1, 1, 2, 0], [0, 0, 1, 1, 2, 2])
    assert evaluation.accuracy == pytest.approx(5 / 6)
    assert evaluation.worst_class_accuracy == 0.5
    assert judge_run(evaluation, GateSection(min_accuracy=0.8, min_class_accuracy=0.5)).passed
    assert not judge_run(evaluation, GateSection(min_accuracy=0.9)).passed
    assert not judge_run(evaluation, GateSection(min_class_accuracy=0.6)).passed
    assert judge_run(evaluation, GateSection(max_loss=evaluation.loss)).passed
    assert not judge_run(evaluation, GateSection(max_loss=evaluation.loss * 0.99)).passed


def test_evaluation_figures() -> None:
    evaluation = evaluation_of([0, 1, 1, 2], [0, 0, 1, 2])
    assert evaluation.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert evaluation.per_class["1"] == {"support": 1.0, "recall": 1.0, "precision": 0.5}
    log_sum = np.log(np.exp(4.0) + 2)
    assert evaluation.loss == pytest.approx((3 * (log_sum - 4) + log_sum) / 4)


def test_huge_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    assert Evaluation(logits=logits, y=np.array([0, 0]), labels=("a", "b")).loss == pytest.approx(1e4)


@given(b=st.integers(0, 60), c=st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    expected = 1.0 if b + c == 0 else binomtest(b, b + c, 0.5).pvalue
    assert mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


@given(RIGHT)
def test_comparison_counts_every_sample_once(pairs: list[tuple[bool, bool]]) -> None:
    old, new = (np.array(side) for side in zip(*pairs, strict=True))
    found = compare(old, new)
    assert found.total == len(pairs)
    assert found.gain == pytest.approx(new.mean() - old.mean())
    assert 0 < found.p_value <= 1


def test_comparison_needs_the_same_samples() -> None:
    with pytest.raises(DataError):
        compare(np.array([True]), np.array([True, False]))
    with pytest.raises(DataError):
        compare(np.array([], bool), np.array([], bool))


def paired(only_old: int, only_new: int, total: int = 100) -> PairedComparison:
    return PairedComparison(
        both_right=total - only_old - only_new,
        only_old=only_old,
        only_new=only_new,
        both_wrong=0,
        p_value=mcnemar_exact(only_old, only_new),
    )


@given(
    domain=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    base=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    min_gain=st.floats(-1, 1),
    max_drop=RATIO,
    max_p=st.none() | st.floats(0.001, 1),
)
def test_aggregate_passes_exactly_when_all_three_bounds_hold(
    domain: tuple[int, int], base: tuple[int, int], min_gain: float, max_drop: float, max_p: float | None
) -> None:
    on_domain, on_base = paired(*domain), paired(*base)
    bounds = FederationSection(min_gain=min_gain, max_base_drop=max_drop, max_p=max_p)
    expected = (
        on_domain.gain >= min_gain and -on_base.gain <= max_drop and (max_p is None or on_domain.p_value <= max_p)
    )
    assert judge_aggregate(on_domain, on_base, bounds).passed == expected


def test_a_gain_that_costs_the_base_domain_is_refused() -> None:
    bounds = FederationSection(min_gain=0.1, max_base_drop=0.05)
    assert judge_aggregate(paired(0, 20), paired(5, 0), bounds).passed
    gate = judge_aggregate(paired(0, 20), paired(6, 0), bounds)
    assert not gate.passed
    assert [c.name for c in gate.checks if not c.passed] == ["base_drop"]
