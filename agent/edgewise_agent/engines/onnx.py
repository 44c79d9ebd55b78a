"""Engine `onnxruntime`: ONNX files on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from edgewise_protocol.manifest import Manifest, TensorSpec
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from edgewise_agent.engines.base import Engine, Tensors
from edgewise_agent.engines.batches import run_fixed
from edgewise_agent.engines.dtypes import NUMPY
from edgewise_agent.engines.errors import EngineError, InferenceError, ModelFileError

FOREIGN: Final[tuple[type[Exception], ...]] = (
    *(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
    TypeError,
    OSError,
    MemoryError,
)
"""onnxruntime's exceptions have no base of their own, so they are named one by one."""

_NUMPY_OF_ONNX: Final = {
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(float16)": NUMPY["FP16"],
    "tensor(float)": NUMPY["FP32"],
    "tensor(double)": NUMPY["FP64"],
    **{f"tensor({name.lower()})": NUMPY[name] for name in NUMPY if "INT" in name},
}


@contextmanager
def foreign_errors(kind: type[EngineError], what: str) -> Iterator[None]:
    """Turn onnxruntime's errors into `kind`, with the first 400 characters of what it says."""
    try:
        yield
    except FOREIGN as error:
        raise kind(f"{what}: {str(error)[:400]}") from error


class OnnxEngine(Engine):
    """A model in onnxruntime's CPU provider, one session, run in its caller's thread."""

    def __init__(self, model_path: Path, manifest: Manifest, threads: int) -> None:
        super().__init__(manifest)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # By the manifest, not by the file's first bytes: what was checked is what runs.
        options.add_session_config_entry("session.load_model_format", "ORT" if manifest.format == "ort" else "ONNX")
        # Spinning would burn a core between requests; blocks of an arena would stay for good.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        with foreign_errors(ModelFileError, f"onnxruntime cannot load {model_path.name}"):
            self._session: Any = onnxruntime.InferenceSession(
                str(model_path), options, providers=["CPUExecutionProvider"]
            )
        files_inputs, files_outputs = self._session.get_inputs(), self._session.get_outputs()
        _check(manifest.inputs, files_inputs, "input")
        _check(manifest.outputs, files_outputs, "output")
        self._types = {arg.name: _NUMPY_OF_ONNX[arg.type] for arg in files_inputs}
        self._names = [spec.name for spec in manifest.outputs]
        fixed = {arg.shape[0] for arg in files_inputs if arg.shape and isinstance(arg.shape[0], int)}
        free = all(spec.shape and spec.shape[0] == -1 for spec in manifest.inputs)
        self._batch = fixed.pop() if free and len(fixed) == 1 else None

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        if self._batch is not None:
            return run_fixed(self._run_once, inputs, self._batch)
        return self._run_once(inputs)

    def _run_once(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        feeds = {
            name: array if array.dtype == self._types[name] else array.astype(self._types[name])
            for name, array in inputs.items()
        }
        with foreign_errors(InferenceError, "onnxruntime failed"):
            return dict(zip(self._names, self._session.run(self._names, feeds), strict=True))

    def close(self) -> None:
        self._session = None


def _check(specs: Sequence[TensorSpec], args: Sequence[Any], what: str) -> None:
    found = {arg.name: arg for arg in args}
    if (what == "input" and set(found) != {spec.name for spec in specs}) or any(s.name not in found for s in specs):
        raise ModelFileError(
            f"the manifest names the {what}s {[s.name for s in specs]}; the model file has {sorted(found)}"
        )
    for spec in specs:
        arg, wanted = found[spec.name], NUMPY[spec.dtype]
        got = _NUMPY_OF_ONNX.get(arg.type)
        if got is None or (got != wanted and not (got.kind == wanted.kind == "f")):
            raise ModelFileError(f"{what} {spec.name!r} is {spec.dtype} in the manifest, {arg.type} in the model file")
        same_rank = len(arg.shape) == len(spec.shape)
        pairs = zip(spec.shape[1:], arg.shape[1:], strict=False)
        if not same_rank or any(isinstance(a, int) and s not in (-1, a) for s, a in pairs):
            raise ModelFileError(
                f"{what} {spec.name!r} has the shape {list(spec.shape)} in the manifest, {arg.shape} in the model file"
            )
