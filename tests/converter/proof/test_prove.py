"""Danger: a bundle that answers wrong, or that was not run on its target, passes for proven."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgewise_converter import golden
from edgewise_converter.cache import Cache
from edgewise_converter.errors import ModelFileError, NoEmulationError, NotPreparedError, ProofMissingError
from edgewise_converter.hardware import Host
from edgewise_converter.proof import prove
from edgewise_converter.proof.result import ProofResult, Verdict, hold, judge
from edgewise_converter.search.converting import convert_model
from edgewise_converter.search.request import Request
from edgewise_profiles import catalogue
from edgewise_protocol.manifest import Golden, Proof, Requirements, Tolerance

bundles: Any = sys.modules["proof_bundles"]
V2 = catalogue.load("x86-64").cpu.features
PI = catalogue.load("raspberry-pi-4-64")


@pytest.fixture
def affine(tmp_path: Path) -> Path:
    files = bundles.affine_files()
    return bundles.write(tmp_path / "affine.ewb", bundles.manifest_of(files), files)


def test_a_good_bundle_is_proven_on_this_machine(affine: Path) -> None:
    found = prove.on_host(prove.read(affine))
    assert found.passed
    assert found.reason == ""
    assert [(o.output, o.outside) for o in found.outputs] == [("y", 0.0)]
    assert found.outputs[0].max_abs_error < 1e-4
    assert (found.profile, found.proof.emulated, found.samples) == ("host", False, 3)
    assert found.proof.engine_version
    assert found.proof.cpu_features


def test_changed_weights_with_kept_golden_answers_fail(affine: Path, tmp_path: Path) -> None:
    files = bundles.affine_files(scale=2.5)
    changed = bundles.write(tmp_path / "changed.ewb", bundles.manifest_of(files), files)
    found = prove.on_host(prove.read(changed))
    assert not found.passed
    assert "outside of the tolerance" in found.reason
    assert found.outputs[0].max_abs_error == pytest.approx(5.5)
    assert Verdict(results=(found,)).proofs == ()


def test_a_model_that_the_engine_refuses_has_failed(tmp_path: Path) -> None:
    files = bundles.affine_files() | {"model.onnx": b"no model"}
    found = prove.on_host(prove.read(bundles.write(tmp_path / "b.ewb", bundles.manifest_of(files), files)))
    assert not found.passed
    assert "fails to load the model" in found.reason


def test_an_engine_that_dies_has_failed(affine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, sys; print('oh', file=sys.stderr, flush=True); os.abort()"
    monkeypatch.setattr(prove.running, "native_command", lambda: [sys.executable, "-I", "-c", code])
    found = prove.on_host(prove.read(affine))
    assert not found.passed
    assert "killed by signal 6: oh" in found.reason


def hungry(floats: int) -> bytes:
    """An ONNX file that fills so many numbers: y = x + mean of them."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Mul", ["m", "zero"], ["z"]),
        helper.make_node("Add", ["z", "count"], ["f"]),
        helper.make_node("Cast", ["f"], ["i"], to=TensorProto.INT64),
        helper.make_node("Expand", ["zero", "i"], ["large"]),
        helper.make_node("ReduceMean", ["large"], ["mean"], keepdims=0),
        helper.make_node("Add", ["x", "mean"], ["y"]),
    ]
    values = {"zero": np.zeros(1, np.float32), "count": np.full(1, floats, np.float32)}
    graph = helper.make_graph(
        nodes,
        "hungry",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(made.SerializeToString())


@pytest.mark.parametrize(("floats", "said"), [(1 << 10, "outside of the tolerance"), (1 << 28, "fails to run")])
def test_a_model_that_takes_too_much_memory_has_failed(
    floats: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prove.running, "_NATIVE_BYTES", 768 << 20)
    files = bundles.affine_files() | {"model.onnx": hungry(floats)}
    found = prove.on_host(prove.read(bundles.write(tmp_path / "b.ewb", bundles.manifest_of(files), files)))
    assert not found.passed
    assert said in found.reason


@pytest.mark.parametrize("changes", [{"kind": "training"}, {"golden": None}])
def test_a_bundle_without_golden_inputs_is_refused(changes: dict[str, Any]) -> None:
    files = bundles.affine_files()
    with pytest.raises(ModelFileError, match="no golden inputs"):
        prove.gather(bundles.manifest_of(files, **changes), files, "b")


def test_golden_tensors_that_are_not_the_manifests_are_refused() -> None:
    files = bundles.affine_files()
    files[golden.GOLDEN_FILE] = golden.encode({"z": np.zeros(3)}, {"y": np.zeros(3)})
    with pytest.raises(ModelFileError, match="does not hold"):
        prove.gather(bundles.manifest_of(files), files, "b")


def host(*features: str, machine: str = "x86_64") -> Host:
    return Host(machine=machine, cpu="a processor", cpu_features=features)


@pytest.mark.parametrize(
    ("profile", "precision", "machine", "features", "expected"),
    [
        ("x86-64", "float32", "x86_64", V2, ("native",)),
        ("x86-64", "int8", "x86_64", V2, ("native",)),
        # More than the profile promises: int8 adds up otherwise there.
        ("x86-64", "int8", "x86_64", (*V2, "avx512_vnni"), ("native", "emulated")),
        ("x86-64", "int8-dynamic", "x86_64", (*V2, "avx_vnni"), ("native", "emulated")),
        ("x86-64", "float32", "x86_64", (*V2, "avx512_vnni"), ("native",)),
        ("x86-64", "float32", "x86_64", V2[:-1], ("emulated",)),
        ("raspberry-pi-4-64", "int8", "x86_64", V2, ("emulated",)),
        ("raspberry-pi-4-64", "int8", "aarch64", PI.cpu.features, ("native",)),
        ("raspberry-pi-5", "int8", "aarch64", PI.cpu.features, ("emulated",)),
    ],
)
def test_where_a_bundle_is_proven(
    profile: str, precision: str, machine: str, features: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    manifest = bundles.manifest_of(bundles.affine_files(), precision=precision)
    assert prove.places(manifest, catalogue.load(profile), host(*features, machine=machine)) == expected


def test_without_a_sysroot_nothing_is_taken_for_proven(affine: Path, tmp_path: Path) -> None:
    what = prove.read(affine)
    with pytest.raises(NotPreparedError, match="edgewise prove --prepare raspberry-pi-4-64"):
        prove.prove_on(what, PI, place="emulated", home=tmp_path)
    files = bundles.affine_files()
    manifest = bundles.manifest_of(files, profile=PI.id)
    verdict = prove.prove_contents(manifest, files, PI, home=tmp_path)
    assert not verdict.passed
    assert verdict.proofs == ()
    assert "--prepare raspberry-pi-4-64" in verdict.why_not
    with pytest.raises(ProofMissingError, match="was not run on the target's instruction set"):
        prove.prove_contents(manifest, files, PI, mode="always", home=tmp_path)
    assert prove.prove_contents(manifest, files, PI, mode="never", home=tmp_path).results == ()


def test_an_engine_that_the_profile_does_not_have_is_not_run_for_it(tmp_path: Path) -> None:
    files = bundles.affine_files()
    what = prove.gather(bundles.manifest_of(files), files, "b")
    with pytest.raises(NoEmulationError, match="raspberry-pi-zero-2-w has no engine onnxruntime"):
        prove.prove_on(what, catalogue.load("raspberry-pi-zero-2-w"), place="emulated", home=tmp_path)


def test_a_module_compiled_for_another_machine_is_not_run_here() -> None:
    files = bundles.affine_files()
    needs = Requirements(engine="iree", machine="riscv64")
    manifest = bundles.manifest_of(files, format="vmfb", requires=needs)
    with pytest.raises(NoEmulationError, match=r"compiled for riscv64|not installed"):
        prove.on_host(prove.gather(manifest, files, "b"))


def test_every_output_is_held_to_its_own_tolerance() -> None:
    rule = Golden(file="g", samples=1, atol=1.0, rtol=0.0, per_output=(Tolerance(output="b", atol=0.01, rtol=0.0),))
    expected = {"a": np.zeros((1, 3)), "b": np.zeros((1, 2))}
    got = {"a": np.full((1, 3), 0.5), "b": np.array([[0.0, 0.5]])}
    found = judge("p", Proof(machine="m"), rule, expected, got, seconds=1.0, log="")
    assert not found.passed
    assert [(o.output, o.max_abs_error, o.atol, o.outside) for o in found.outputs] == [
        ("a", 0.5, 1.0, 0.0),
        ("b", 0.5, 0.01, 0.5),
    ]


def verdict(*passed: bool, why_not: str = "") -> Verdict:
    results = tuple(
        ProofResult(profile="p", proof=Proof(machine=f"m{i}", cpu="c"), passed=one, reason="differs", samples=1)
        for i, one in enumerate(passed)
    )
    return Verdict(results=results, why_not=why_not)


@pytest.mark.parametrize(
    ("found", "auto", "always"),
    [
        (verdict(True), True, True),
        (verdict(True, True), True, True),
        (verdict(True, False), False, False),
        (verdict(False), False, False),
        (verdict(True, why_not="no sysroot"), True, False),
        (verdict(why_not="no sysroot"), True, False),
    ],
)
def test_what_each_mode_lets_out(found: Verdict, auto: bool, always: bool) -> None:
    assert found.passed is always
    hold(found, "never", "it")
    for mode, lets in (("auto", auto), ("always", always)):
        if lets:
            hold(found, mode, "it")  # type: ignore[arg-type]
        else:
            with pytest.raises(ProofMissingError):
                hold(found, mode, "it")  # type: ignore[arg-type]


def test_a_bundle_of_a_real_run_is_proven_and_a_broken_one_is_not(digits_run: Path, tmp_path: Path) -> None:
    request = Request(model=str(digits_run), version=1, form="onnx-int8")
    (report,) = convert_model(request, [PI], tmp_path, cache=Cache(None))
    good = prove.on_host(prove.read(Path(report.path)))
    assert good.passed, good.reason
    bad = prove.on_host(prove.read(bundles.broken(Path(report.path), tmp_path / "broken.ewb")))
    assert not bad.passed
    assert bad.outputs[0].max_abs_error > bad.outputs[0].atol
