"""Danger: golden outputs that are no numbers, or none, and so let any model pass."""

from __future__ import annotations

import numpy as np
import pytest
from edgewise_protocol.golden import compare
from edgewise_protocol.manifest import Golden
from numpy.typing import NDArray

RULES = [
    Golden(file="g.safetensors", samples=2, atol=0.1, rtol=0.01),
    Golden(file="g.safetensors", samples=2, atol=0.1, rtol=0.0),
    Golden(file="g.safetensors", samples=2, atol=0.1, rtol=0.01, outliers=0.2),
]
GOT = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)


def passes(rule: Golden, want: NDArray[np.float32], got: NDArray[np.float32] = GOT) -> bool:
    return compare(rule, {"y": want}, {"y": got}).passed


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_met_by_itself_alone(rule: Golden, odd: float) -> None:
    one = GOT.copy()
    one[0, 1] = odd
    assert passes(rule, GOT + np.float32(0.05))
    assert not passes(rule, one) and not passes(rule, GOT, one)
    assert not passes(rule, np.full_like(GOT, odd))
    assert passes(rule, one, one)
    assert not passes(rule, np.full_like(GOT, np.inf), np.full_like(GOT, -np.inf))


@pytest.mark.parametrize("shape", [(0, 10), (2, 0), (0,)])
def test_outputs_without_a_value_prove_nothing(shape: tuple[int, ...]) -> None:
    empty = np.zeros(shape, np.float32)
    found = compare(RULES[0], {"y": empty}, {"y": empty})
    assert not found.passed and "no outputs" in found.reason


def test_an_output_of_one_number_is_compared() -> None:
    three, four = np.array(3.0, np.float32), np.array(4.0, np.float32)
    assert passes(RULES[0], three, three)
    assert not passes(RULES[0], three, four)
