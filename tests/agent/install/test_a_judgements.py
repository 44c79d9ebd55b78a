"""Guards against a self-test that passes a wrong model or fails a right one, and a probation that ends wrongly."""

from __future__ import annotations

import numpy as np
import pytest
from edgewise_agent.config import ProbationConfig
from edgewise_agent.install.probation import Evidence, judge
from edgewise_agent.install.self_test import RefusedError
from edgewise_agent.install.self_test import judge as judge_measured
from edgewise_protocol.golden import compare
from edgewise_protocol.manifest import Budget, FileEntry, Golden, Manifest, Requirements
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

STRICT = Golden(file="g", samples=4, atol=0.01, rtol=0.0)
LOOSE = Golden(file="g", samples=4, atol=0.01, rtol=0.0, top1=0.75, outliers=0.25)
WANT = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], np.float32)


def test_equal_outputs_pass_and_the_measures_are_right() -> None:
    found = compare(STRICT, {"y": WANT}, {"y": WANT + 0.005})
    assert found.passed and found.outliers == 0.0 and found.top1 == 1.0
    assert found.max_abs_error == pytest.approx(0.005, abs=1e-6)


def test_one_element_outside_fails_the_strict_rule() -> None:
    got = WANT.copy()
    got[2, 1] += 0.02
    found = compare(STRICT, {"y": WANT}, {"y": got})
    assert not found.passed and found.outliers == pytest.approx(1 / 8) and "0.02" in found.reason


def test_the_loose_rule_counts_classes_and_outliers() -> None:
    got = WANT.copy()
    got[2] = got[2][::-1]
    assert compare(LOOSE, {"y": WANT}, {"y": got}).passed
    got[3] = got[3][::-1]
    assert "right class" in compare(LOOSE, {"y": WANT}, {"y": got}).reason
    got = WANT.copy()
    got[:3] *= 1.5
    assert "outside of the tolerance" in compare(LOOSE, {"y": WANT}, {"y": got + 0.02}).reason


@pytest.mark.parametrize("golden", [STRICT, LOOSE])
def test_what_is_not_a_number_or_not_there_fails(golden: Golden) -> None:
    assert not compare(golden, {"y": WANT}, {"y": np.full_like(WANT, np.nan)}).passed
    assert not compare(golden, {"y": WANT}, {"y": np.full_like(WANT, np.inf)}).passed
    assert not compare(golden, {"y": WANT}, {}).passed
    assert not compare(golden, {"y": WANT}, {"y": WANT[:2]}).passed
    assert not compare(golden, {}, {}).passed
    assert compare(golden, {"y": WANT}, {"y": np.full_like(WANT, np.nan)}).max_abs_error < float("inf")


MANIFEST = Manifest(
    spec_version="1.0",
    kind="inference",
    model="m",
    version=1,
    profile="p",
    requires=Requirements(engine="onnxruntime"),
    files=(FileEntry(name="f", sha256="0" * 64, size=1),),
    budget=Budget(latency_ms=2.0, memory_mib=100),
)


def test_the_budget_names_by_how_much_it_is_missed() -> None:
    judge_measured(MANIFEST, {"latency_ms": 2.0, "peak_mib": 100.0})
    with pytest.raises(RefusedError, match=r"2\.50 ms on this device; the budget is 2 ms") as slow:
        judge_measured(MANIFEST, {"latency_ms": 2.5, "peak_mib": 10.0})
    with pytest.raises(RefusedError, match="120 MiB on this device; the budget is 100 MiB") as large:
        judge_measured(MANIFEST, {"latency_ms": 1.0, "peak_mib": 120.0})
    assert (slow.value.code, large.value.code) == ("self-test-latency", "self-test-memory")
    judge_measured(replace(MANIFEST, budget=Budget()), {"latency_ms": 9e9, "peak_mib": 9e9})


CONFIG = ProbationConfig(min_inferences=10, seconds=60.0)
GOOD = Evidence(serving=True, inferences_ok=0, errors=0, elapsed_s=1.0, left_s=100.0, reachable=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "wait"),
        ({"inferences_ok": 10}, "confirm"),
        ({"elapsed_s": 60.0}, "confirm"),
        ({"inferences_ok": 10, "reachable": False}, "wait"),
        ({"inferences_ok": 10, "errors": 1}, "fault"),
        ({"serving": False}, "fault"),
        ({"left_s": 0.0}, "expired"),
        ({"left_s": 0.0, "inferences_ok": 10}, "expired"),
        ({"left_s": 0.0, "errors": 1}, "fault"),
    ],
)
def test_probation(changes: dict[str, object], expected: str) -> None:
    assert judge(Evidence(**{**vars(GOOD), **changes}), CONFIG) == expected  # type: ignore[arg-type]


@given(st.booleans(), st.integers(0, 50), st.integers(0, 3), st.floats(0, 200), st.floats(-10, 200), st.booleans())
def test_nothing_is_confirmed_with_an_error_or_unheard(
    serving: bool, ok: int, errors: int, elapsed: float, left: float, reachable: bool
) -> None:
    evidence = Evidence(serving, ok, errors, elapsed, left, reachable)
    if judge(evidence, CONFIG) == "confirm":
        assert serving and not errors and reachable and left > 0 and (ok >= 10 or elapsed >= 60)
