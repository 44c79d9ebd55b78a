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
