"""Danger: compiled code that answers other tensors than the manifest says, or takes the agent down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgewise_agent.engines import InputError, ModelFileError, installed, open_engine
from edgewise_protocol.manifest import TensorSpec

pytest.importorskip("iree.compiler", reason="the extra iree is not installed")
MLIR = """
func.func @model(%x: tensor<?x3xf32>, %y: tensor<?x3xf32>) -> (tensor<?x3xf32>, tensor<?x3xf32>) {
  %s = arith.addf %x, %y : tensor<?x3xf32>
  %p = arith.mulf %x, %y : tensor<?x3xf32>
  return %s, %p : tensor<?x3xf32>, tensor<?x3xf32>
}
"""


def compiled(triple: str = "") -> bytes:
    from iree.compiler import compile_str

    flags = [f"--iree-llvmcpu-target-triple={triple}"] if triple else ["--iree-llvmcpu-target-cpu=generic"]
    return bytes(compile_str(MLIR, target_backends=["llvm-cpu"], extra_args=flags))


@pytest.fixture(scope="module")
def module() -> bytes:
    return compiled()


def specs(*names: str) -> list[TensorSpec]:
    return [TensorSpec(name=name, dtype="FP32", shape=(-1, 3)) for name in names]


@pytest.fixture
def manifest(files: Any) -> Any:
    return files.manifest("iree", specs("left", "right"), specs("sum", "product"), format="vmfb")


def test_tensors_are_taken_and_given_in_the_manifests_order(module: bytes, manifest: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.vmfb"
    file.write_bytes(module)
    assert "iree" in installed()
    engine = open_engine("iree", file, manifest)
    engine.warm_up()
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.full((2, 3), 2, np.float32)
    found = engine.infer({"right": b, "left": a})
    assert np.array_equal(found["sum"], a + b) and np.array_equal(found["product"], a * b)
    with pytest.raises(InputError):
        engine.infer({"left": a, "right": b[:, :2]})
    engine.close()


@pytest.mark.parametrize("cut", [0, 100, 2000])
def test_a_damaged_module_is_refused(module: bytes, manifest: Any, tmp_path: Path, cut: int) -> None:
    file = tmp_path / "model.vmfb"
    file.write_bytes(module[:cut])
    with pytest.raises(ModelFileError, match="IREE cannot load"):
        open_engine("iree", file, manifest)


def test_a_module_for_another_machine_is_refused(manifest: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.vmfb"
    file.write_bytes(compiled("aarch64-linux-gnu"))
    with pytest.raises(ModelFileError, match="IREE cannot load"):
        open_engine("iree", file, manifest)
