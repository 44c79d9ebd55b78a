"""Danger: a tolerance that a right answer of another processor misses, or that a wrong one meets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edgewise_converter import golden
from edgewise_protocol.golden import compare

STEP = 1 / 256


def softmax(logits: Any) -> Any:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return (np.round(shares / STEP) * STEP).astype(np.float32)


@pytest.fixture
def logits() -> Any:
    """Of sixteen samples, clear and unclear, in steps of .15."""
    drawn = np.random.default_rng(3).normal(0, 2.0, (64, 10))
    chosen = golden.choose(drawn.astype(np.float32))
    return np.round(drawn[chosen] / 0.15) * 0.15


def test_a_logits_step_does_not_fail_a_probability(logits: Any) -> None:
    want = softmax(logits)
    rule = golden.describe(want, "int8", STEP, "classification")
    off = np.random.default_rng(4).integers(-1, 2, logits.shape) * 0.15
    got = softmax(logits + off)
    assert np.abs(got - want).max() > 2.5 * STEP  # it does move by more than the output's own steps
    assert compare(rule, {"y": want}, {"y": got}).passed


def test_wrong_probabilities_fail(logits: Any) -> None:
    want = softmax(logits)
    rule = golden.describe(want, "int8", STEP, "classification")
    for wrong in (np.roll(want, 1, axis=1), np.full_like(want, 0.1), np.zeros_like(want), softmax(logits * 0.3)):
        assert not compare(rule, {"y": want}, {"y": wrong}).passed


@pytest.mark.parametrize("task", ["classification", "other"])
def test_what_is_no_probability_keeps_its_steps(task: str, logits: Any) -> None:
    assert golden.describe(logits.astype(np.float32), "int8", 0.15, task).atol == pytest.approx(0.375)
    one = np.full((8, 1), 0.5, np.float32)
    assert golden.describe(one, "int8", STEP, task).atol == pytest.approx(2.5 * STEP, rel=0.01)


FORMS: list[tuple[Any, float | None]] = [("float32", None), ("float16", None), ("int8", None), ("int8-dynamic", None)]


@pytest.mark.parametrize(("precision", "step"), [*FORMS, ("int8", 0.01)])
@pytest.mark.parametrize("task", ["classification", "regression", "other"])
@pytest.mark.parametrize("offset", [0.0, 300.0, -5000.0])
def test_a_model_that_tells_samples_no_longer_apart_fails(precision: Any, step: Any, task: str, offset: float) -> None:
    want = (offset + np.random.default_rng(6).normal(0, 0.2, (16, 3))).astype(np.float32)
    mean = np.broadcast_to(want.mean(axis=0), want.shape).astype(np.float32)
    for several in (False, True):
        rule = golden.describe(want, precision, step, task, several=several)
        assert compare(rule, {"y": want}, {"y": want}).passed
        for wrong in (mean, 2 * mean - want, want[::-1], -want):
            assert not compare(rule, {"y": want}, {"y": wrong}).passed


@pytest.mark.parametrize(("precision", "share"), [("float32", 1e-6), ("float16", 1e-3), ("int8", 2 / 255)])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_what_other_kernels_answer_passes(precision: Any, share: float, offset: float) -> None:
    r = np.random.default_rng(7)
    want = (offset + r.normal(0, 2.0, (16, 128))).astype(np.float32)
    noise = share * np.ptp(want) * r.uniform(-1, 1, want.shape) + 1e-7 * offset * r.normal(size=want.shape)
    for task in ("classification", "other"):
        rule = golden.describe(want, precision, None, task, several=True)
        assert compare(rule, {"y": want}, {"y": (want + noise).astype(np.float32)}).passed


def test_a_step_of_the_form_is_never_refused() -> None:
    r = np.random.default_rng(8)
    coarse = np.float32(3.0) * r.integers(0, 2, (16, 4)).astype(np.float32)  # two steps are all that it tells apart
    rule = golden.describe(coarse, "int8", 3.0, "regression")
    assert rule.rms >= 3.0 and compare(rule, {"y": coarse}, {"y": coarse + np.float32(3.0)}).passed
    half = (300 + r.normal(0, 1.0, (16, 4))).astype(np.float16).astype(np.float32)  # in steps of .25
    rule = golden.describe(half, "float16", None, "regression")
    off = half.copy()
    off[::3] += 0.25
    assert compare(rule, {"y": half}, {"y": off}).passed
    assert not compare(rule, {"y": half}, {"y": np.full_like(half, half.mean())}).passed


@pytest.mark.parametrize(("precision", "step"), FORMS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 6), (16,), (16, 6), (16, 2, 3)])
def test_constant_and_single_answers_have_a_rule(precision: Any, step: Any, shape: tuple[int, ...]) -> None:
    drawn = np.random.default_rng(9).normal(size=shape).astype(np.float32)
    for want in (drawn, np.zeros(shape, np.float32), np.full(shape, 1e3, np.float32)):
        rule = golden.describe(want, precision, step, "other")
        assert compare(rule, {"y": want}, {"y": want * np.float32(1 + 1e-6)}).passed
        assert not compare(rule, {"y": want}, {"y": want + 2 * np.abs(want).max() + 1}).passed


def test_named_classes_are_equal_but_for_one_sample_of_a_lossy_form() -> None:
    named = np.arange(16, dtype=np.int64) * 4000
    one, two = named.copy(), named.copy()
    one[:1] += 1
    two[:2] += 1
    for precision, passing in (("float32", (True, False, False)), ("int8", (True, True, False))):
        rule = golden.describe(named, precision, None, "classification", several=True)
        assert tuple(compare(rule, {"y": named}, {"y": got}).passed for got in (named, one, two)) == passing


def test_a_second_output_keeps_the_classes_that_are_clear() -> None:
    want = np.eye(16, 4, dtype=np.float32) * 5
    want[4:] = 0.01 * np.random.default_rng(1).normal(size=(12, 4))
    rule = golden.describe(want, "int8", 0.1, "classification", several=True)
    assert rule.top1 == 3 / 16, "all but one of the four clear ones"
