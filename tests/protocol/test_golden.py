"""Danger: golden outputs that are no numbers, or none, and so let any model pass."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from edgewise_protocol.golden import compare
from edgewise_protocol.manifest import Golden, Tolerance
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


WIDE, NARROW = np.ones((16, 128), np.float32), np.eye(16, 3, dtype=np.float32) + np.float32(0.1)
BOTH = {"wide": WIDE, "narrow": NARROW}


def of_each(**more: Any) -> Golden:
    both = tuple(Tolerance(output=name, atol=0.1, rtol=0.0, **more) for name in BOTH)
    return Golden(file="g.safetensors", samples=16, atol=0.1, rtol=0.0, outliers=0.05, per_output=both)


def test_a_wide_output_does_not_hide_a_wrong_narrow_one() -> None:
    wrong = {"wide": WIDE, "narrow": -100 * NARROW}
    assert compare(of_each(), BOTH, wrong).passed, "as bundles say that name no share of an output's own"
    found = compare(of_each(outliers=0.05), BOTH, wrong)
    assert not found.passed and "'narrow'" in found.reason and found.outliers == pytest.approx(48 / 2096)
    assert compare(of_each(outliers=0.05, top1=0.9, rms=0.1), BOTH, BOTH).passed


def test_an_output_of_its_own_has_its_own_classes_and_errors() -> None:
    turned = {"wide": WIDE, "narrow": NARROW[:, ::-1]}
    assert "right class" in compare(of_each(outliers=1.0, top1=0.9), BOTH, turned).reason
    assert "root mean square" in compare(of_each(outliers=1.0, rms=0.05), BOTH, turned).reason
    assert compare(of_each(outliers=1.0, rms=5.0), BOTH, turned).passed
    assert compare(of_each(rms=0.05, outliers=None), BOTH, {"wide": WIDE + np.float32(0.09), "narrow": NARROW}).reason


@pytest.mark.parametrize("odd", [np.nan, np.inf, 1e200])
def test_few_elements_may_stray_and_not_far(odd: float) -> None:
    rule = Golden(file="g.safetensors", samples=16, atol=0.1, rtol=0.0, outliers=0.05, rms=0.2)
    got = WIDE.astype(np.float64)
    got[0, :10] += 1.0
    assert compare(rule, {"y": WIDE}, {"y": got}).passed
    assert "root mean square" in compare(rule, {"y": WIDE}, {"y": got + 0.05 + (got > 1) * 3}).reason
    got[0, 0] = odd
    assert not compare(rule, {"y": WIDE}, {"y": got}).passed


def test_a_rule_of_bundles_before_is_written_as_it_was() -> None:
    plain = Tolerance(output="b", atol=0.01, rtol=0.0)
    rule = Golden(file="g", samples=1, atol=1.0, rtol=0.0, per_output=(plain,))
    text = b'{"file":"g","samples":1,"atol":1.0,"rtol":0.0,"per_output":[{"output":"b","atol":0.01,"rtol":0.0}]}'
    assert msgspec.json.encode(rule) == text and msgspec.json.decode(text, type=Golden) == rule
