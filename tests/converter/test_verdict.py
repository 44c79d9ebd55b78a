"""Danger: a verdict that passes what it must not: NaN outputs, a tolerance without teeth, a bound never applied."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from edgewise_converter import golden
from edgewise_converter.budget import judge, passes
from edgewise_converter.engines.litert import Affine
from edgewise_converter.errors import WriteError
from edgewise_converter.files import write_atomically
from edgewise_converter.hardware import Host, is_profiles_hardware, read_host
from edgewise_converter.quality import Quality, compare
from edgewise_profiles import catalogue
from edgewise_protocol.golden import compare as compare_golden
from edgewise_protocol.manifest import Golden
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

PI4, X86, VNNI = (catalogue.load(n) for n in ("raspberry-pi-4-64", "x86-64", "x86-64-vnni"))
GOOD = Quality(samples=100, max_error=0.0, rms_error=0.0, accuracy=0.98, accuracy_float=0.98, agreement=1.0)
logits = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 40), st.integers(2, 10)), elements=st.floats(-50, 50, width=32)
)


def verdict(profile: Any = X86, **changes: Any) -> tuple[bool, dict[str, Any]]:
    quality = {k: changes.pop(k) for k in list(changes) if k in GOOD.__struct_fields__}
    import msgspec

    arguments = {"model_size": 1024, "latency_ms": 1.0, "latency_binding": True} | changes
    checks = judge(profile, "int8", msgspec.structs.replace(GOOD, **quality), **arguments)
    return passes(checks), {c.name: c for c in checks}


def test_what_is_good_passes_and_each_bound_alone_refuses() -> None:
    assert verdict()[0]
    assert not verdict(accuracy=0.974)[0]
    assert not verdict(agreement=0.94)[0]
    assert not verdict(max_error=0.3)[0]
    assert not verdict(rms_error=0.06)[0]
    assert not verdict(model_size=X86.budget.model_size_kib * 1024 + 1)[0]
    assert not verdict(latency_ms=10.001)[0]


def test_bounds_are_reached_exactly() -> None:
    assert verdict(accuracy=0.975)[0], "half a point is what the profile allows, whatever binary fractions say"
    assert verdict(model_size=X86.budget.model_size_kib * 1024)[0]
    assert verdict(latency_ms=10.0)[0]


def test_a_latency_that_does_not_bind_is_told_but_refuses_nothing() -> None:
    passed, checks = verdict(latency_ms=1e6, latency_binding=False)
    assert passed
    assert not checks["median latency"].passed
    assert checks["median latency"].excess == pytest.approx(1e6 - 10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_no_numbers_never_pass(bad: float) -> None:
    source = np.eye(4, dtype=np.float32)
    outputs = source.copy()
    outputs[2, 1] = bad
    quality = compare(outputs, source, np.arange(4), "classification")
    assert quality.max_error == np.inf
    assert not passes(judge(X86, "int8", quality, model_size=1, latency_ms=1, latency_binding=True))


@given(logits, st.floats(0.25, 4))
def test_errors_are_relative_to_the_range_of_the_source(source: Any, factor: float) -> None:
    noise = np.linspace(-0.1, 0.1, source.size, dtype=np.float32).reshape(source.shape)
    labels = source.argmax(1)
    once = compare(source + noise, source, labels, "classification")
    scaled = compare((source + noise) * np.float32(factor), source * np.float32(factor), labels, "classification")
    if np.ptp(source) > 1:
        assert scaled.max_error == pytest.approx(once.max_error, rel=0.05, abs=1e-4)
    assert compare(source, source, labels, "classification").accuracy == 1.0
    assert 0 <= once.agreement <= 1


def test_other_tasks_have_no_accuracy() -> None:
    y = np.ones((3, 2), np.float32)
    quality = compare(y, y, y, "regression")
    assert (quality.accuracy, quality.agreement, quality.max_error) == (None, None, 0.0)
    assert passes(judge(X86, "float32", quality, model_size=1, latency_ms=1, latency_binding=True))


@pytest.mark.parametrize(
    ("profile", "host", "expected"),
    [
        (X86, Host(machine="x86_64", cpu_features=X86.cpu.features), True),
        (X86, Host(machine="aarch64", cpu_features=X86.cpu.features), False),
        (X86, Host(machine="x86_64", cpu_features=X86.cpu.features[1:]), False),
        (VNNI, Host(machine="x86_64", cpu_features=VNNI.cpu.features), False),
        (VNNI, Host(machine="x86_64", cpu_features=(*VNNI.cpu.features, "avx_vnni")), True),
        (PI4, Host(machine="aarch64", cpu_features=PI4.cpu.features), False),
        (PI4, Host(machine="aarch64", cpu_features=PI4.cpu.features, compatible=("raspberrypi,4-model-b",)), True),
        (PI4, Host(machine="aarch64", cpu_features=PI4.cpu.features, compatible=("raspberrypi,5-model-b",)), False),
    ],
)
def test_a_host_is_a_profiles_hardware_only_by_machine_features_and_board(
    profile: Any, host: Host, expected: bool
) -> None:
    assert is_profiles_hardware(profile, host) is expected


def test_this_host_knows_itself() -> None:
    host = read_host()
    assert host.machine
    assert len(host.cpu_features) > 3


@given(logits)
def test_golden_samples_cover_the_classes_and_are_the_clearest(outputs: Any) -> None:
    chosen = golden.choose(outputs)
    assert len(chosen) == min(16, len(outputs))
    assert (np.diff(chosen) > 0).all()
    predicted = outputs.argmax(1)
    assert len(set(predicted[chosen])) == len(set(predicted))
    top = np.sort(outputs.astype(np.float64), axis=1)
    margin = top[:, -1] - top[:, -2]
    for label in set(predicted):
        members = np.flatnonzero(predicted == label)
        kept = np.intersect1d(members, chosen)
        left = np.setdiff1d(members, chosen)
        assert not len(left) or margin[kept].min() >= margin[left].max()


def agrees(outputs: Any, wanted: Any, rule: Golden) -> bool:
    return compare_golden(rule, {"y": wanted}, {"y": outputs}).passed


@pytest.mark.parametrize(("precision", "step"), [("float32", None), ("float16", None), ("int8", 0.1), ("int8", None)])
@given(outputs=logits)
def test_a_golden_rule_accepts_the_outputs_themselves_and_refuses_another_models(
    precision: Any, step: float | None, outputs: Any
) -> None:
    rule = golden.describe(outputs, precision, step, "classification")
    assert agrees(outputs, outputs, rule)
    assert not agrees(outputs + np.float32(np.abs(outputs).max() + 1), outputs, rule)
    assert not agrees(np.full_like(outputs, np.nan), outputs, rule)
    assert not agrees(outputs[:, :1], outputs, rule)


def test_a_golden_rule_allows_one_sample_to_change_its_class_and_no_second() -> None:
    outputs = np.eye(16, 10, dtype=np.float32) * 5
    rule = Golden(file="g", samples=16, atol=10.0, rtol=0.0, top1=15 / 16, outliers=0.05)
    for changed, expected in ((0, True), (1, True), (2, False)):
        other = outputs.copy()
        other[:changed] = np.roll(other[:changed], 1, axis=1)
        assert agrees(other, outputs, rule) is expected


@given(
    st.floats(1e-4, 10),
    st.integers(-128, 127),
    hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(-1e6, 1e6, width=32)),
)
def test_quantizing_saturates_and_is_off_by_at_most_half_a_step_inside(scale: float, zero: int, x: Any) -> None:
    affine = Affine(scale, zero)
    stored = affine.quantize(x, np.dtype(np.int8))
    assert stored.dtype == np.int8
    low, high = (-128 - zero) * scale, (127 - zero) * scale
    back = affine.dequantize(stored)
    assert np.allclose(back, np.clip(x, low, high), atol=0.501 * scale + 1e-5 * max(abs(low), abs(high)))


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.ewb"
    write_atomically(path, lambda out: out.write(b"old"))

    def breaks(out: BinaryIO) -> None:
        out.write(b"half of the n")
        raise ValueError("the power fails")

    with pytest.raises(ValueError, match="power"):
        write_atomically(path, breaks)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.ewb"]
    with pytest.raises(WriteError, match=r"b\.ewb cannot be written"):
        write_atomically(tmp_path / "nowhere" / "b.ewb", lambda out: out.write(b""))


def test_reports_are_values_that_do_not_change() -> None:
    with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
        GOOD.samples = 3  # type: ignore[misc]
