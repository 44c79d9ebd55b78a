"""Danger: native code that stops or answers wrongly on the device, for a feature that its processor has not."""

from __future__ import annotations

import platform
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edgewise_converter import golden
from edgewise_converter.engines.named_onnx import NamedOnnx
from edgewise_converter.engines.opening import open_artifact
from edgewise_converter.errors import EngineError, PassError, ProofMissingError
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.compiled_catalogue import IreeCompileConfig
from edgewise_converter.passes.iree_compile import explain
from edgewise_converter.passes.iree_target import TRIPLES, engine_range, features_of, flags_of
from edgewise_converter.passes.registry import PASSES
from edgewise_converter.proof import prove
from edgewise_converter.requests import Requests
from edgewise_profiles import catalogue
from edgewise_protocol.manifest import Golden, Manifest, Requirements
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("iree.compiler", reason="the extra iree is not installed")
FOREIGN = "riscv64"
OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
RNG = np.random.default_rng(3)
X = RNG.normal(size=(6, 2, 5, 5)).astype(np.float32)


def network(batch: Any = "n", last: str = "Relu", domain: str = "") -> bytes:
    weights = {
        "w": RNG.normal(size=(4, 2, 3, 3)).astype(np.float32),
        "g": RNG.normal(size=(36, 3)).astype(np.float32),
        "b": RNG.normal(size=3).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "g", "b"], ["l"]),
        helper.make_node(last, ["l"], ["y"], domain=domain),
    ]
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 2, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=OPSETS, ir_version=10)
    return bytes(made.SerializeToString(deterministic=True))


def compiled(data: bytes, machine: Any) -> Artifact:
    named = NamedOnnx(data)
    materials = Materials("small", named.inputs, named.outputs, Requests({"x": X}))
    config = IreeCompileConfig(machine=machine, features=features_of(machine, ()))
    found: Artifact = PASSES["iree_compile"].load()(materials, Artifact(data, "onnx", "float32"), config)
    return found


MACHINES = [m if m == FOREIGN else pytest.param(m, marks=pytest.mark.slow) for m in sorted(TRIPLES)]


@pytest.mark.parametrize("machine", MACHINES)
def test_code_for_every_machine_answers_as_the_graph_does(machine: Any) -> None:
    data = network()
    wanted = NamedOnnx(data).infer({"x": X})["y"]
    made = compiled(data, machine)
    assert made.format == "vmfb" and made.signature is not None
    assert (made.stand_in is None) == (machine == "x86_64") or machine == "aarch64"
    found = open_artifact(made).infer({"x": X})["y"]
    assert np.allclose(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_module_is_the_same_twice_and_tells_no_path() -> None:
    data = network()
    first, second = compiled(data, FOREIGN), compiled(data, FOREIGN)
    assert first == second
    assert b"/tmp" not in first.data and b"edgewise-iree" not in first.data


def test_a_fixed_batch_stays_fixed_in_what_a_client_is_told() -> None:
    made = compiled(network(batch=2), FOREIGN)
    assert made.signature is not None
    assert made.signature.inputs[0].shape == (2, 2, 5, 5) and made.signature.outputs[0].shape == (2, 3)
    assert open_artifact(made).infer({"x": X})["y"].shape == (6, 3)


def test_an_operator_that_iree_does_not_know_is_named() -> None:
    with pytest.raises(PassError, match="QuickGelu"):
        compiled(network(last="QuickGelu", domain="com.microsoft"), FOREIGN)


def test_a_missing_c_function_is_explained() -> None:
    log = "iree-lld: error: undefined symbol: fmaxf\nmodel.mlir:1:1: error: failed to link executable"
    assert "fmaxf" in explain(log) and "float32" in explain(log)
    assert explain("") == "it said nothing"
    assert "/tmp" not in explain("/tmp/edgewise-iree-x/model.mlir:3:1: error: failed to legalize operation")


def test_a_module_for_another_machine_or_cut_short_is_refused() -> None:
    made = compiled(network(), FOREIGN)
    for data in (made.data, made.data[:200]):
        with pytest.raises(EngineError):
            open_artifact(Artifact(data, "vmfb", "float32", made.signature))


def test_only_promised_features_are_used() -> None:
    board = catalogue.load("raspberry-pi-4-64")
    flags = " ".join(flags_of(board.machine, features_of(board.machine, board.cpu.features)))
    assert "+crc" in flags and "aes" not in flags and "cortex" not in flags
    assert features_of("x86_64", ("avx512_vnni", "unheard_of")) == ("sse2", "avx512vnni")
    assert "lp64d" in " ".join(flags_of("riscv64", features_of("riscv64", ())))


def test_a_module_asks_for_the_runtime_of_its_compilers_minor_version() -> None:
    assert engine_range("3.13.0") == ("3.13.0", "3.14")
    assert engine_range("3.13.0+local") == ("3.13.0", "3.14")


def with_code_of_its_own(module: bytes, creates: str) -> bytes:
    """A module whose code, wherever it is entered, creates a file and returns 0."""
    path = creates.encode() + b"\0"
    # lea rdi, [path]; mov esi, 0777; mov eax, 85 (creat); syscall; xor eax, eax; ret
    code = bytes.fromhex("488d3d0f000000 beff010000 b855000000 0f05 31c0 c3") + path
    changed, elf = bytearray(module), module.index(b"\x7fELF")
    (table,), (count,) = struct.unpack_from("<Q", module, elf + 32), struct.unpack_from("<H", module, elf + 56)
    for at in range(elf + table, elf + table + 56 * count, 56):
        kind, flags, begin, _, _, size = struct.unpack_from("<IIQQQQ", module, at)
        if kind == 1 and flags & 1:
            changed[elf + begin : elf + begin + len(code)] = code
            # Functions begin at multiples of 16: each jumps to the code.
            for entry in range(-(-len(code) // 16) * 16, size - 5, 16):
                changed[elf + begin + entry : elf + begin + entry + 5] = b"\xe9" + struct.pack("<i", -entry - 5)
    return bytes(changed)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the code is x86's")
def test_a_bundles_machine_code_runs_with_consent_alone(tmp_path: Path) -> None:
    made, created = compiled(network(), "x86_64"), tmp_path / "created"
    assert made.signature is not None
    files = {
        "model": with_code_of_its_own(made.data, str(created)),
        golden.GOLDEN_FILE: golden.encode({"x": X}, {"y": np.zeros((6, 3), np.float32)}),
    }
    manifest = Manifest(
        spec_version="1.0",
        kind="inference",
        model="m",
        version=1,
        profile="x86-64",
        requires=Requirements(engine="iree"),
        files=(),
        inputs=made.signature.inputs,
        outputs=made.signature.outputs,
        format="vmfb",
        model_file="model",
        golden=Golden(file=golden.GOLDEN_FILE, samples=6, atol=1.0, rtol=0.0),
    )
    what = prove.gather(manifest, files, "b.ewb")
    # A bundle may call its format what it likes: the engine is what counts.
    for said in (what, msgspec.structs.replace(what, manifest=msgspec.structs.replace(manifest, format="onnx"))):
        with pytest.raises(ProofMissingError, match="--run-machine-code"):
            prove.on_host(said)
        with pytest.raises(ProofMissingError, match="--run-machine-code"):
            prove.prove_on(said, catalogue.load("x86-64"), place="native")
    assert not created.exists()
    # The code is real: with consent it runs.
    assert not prove.on_host(what, machine_code=True).passed
    assert created.exists()
