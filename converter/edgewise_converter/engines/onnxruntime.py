"""onnxruntime on one thread of the processor."""

from __future__ import annotations

from typing import Final

import numpy as np

from edgewise_converter.engines.runner import Array, Runner
from edgewise_converter.errors import EngineError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.passes.onnx_graph import output_scale

_BATCH: Final = 256
_ERRORS_ONLY: Final = 3


class OnnxRuntimeRunner(Runner):
    """An ONNX file with one input and one output."""

    engine = "onnxruntime"

    def __init__(self, data: bytes) -> None:
        ort = need("onnxruntime")
        self.version = str(ort.__version__)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        self._data = data
        try:
            with quietly():
                self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EngineError(f"onnxruntime cannot load the model: {error}") from error
        self._input = self._session.get_inputs()[0].name

    def infer(self, x: Array) -> Array:
        """See `Runner.infer`; in batches of 256."""
        found = []
        try:
            for start in range(0, len(x), _BATCH):
                batch = np.ascontiguousarray(x[start : start + _BATCH])
                found.append(self._session.run(None, {self._input: batch})[0])
        except Exception as error:
            raise EngineError(f"onnxruntime fails on the model: {error}") from error
        return np.asarray(found[0] if len(found) == 1 else np.concatenate(found), dtype=np.float32)

    def output_step(self) -> float | None:
        """See `Runner.output_step`."""
        return output_scale(self._data)
