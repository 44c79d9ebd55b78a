"""LiteRT on one thread. Its files have a batch of 1, and int8 ones take and give int8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.engines.runner import Array, Runner
from edgewise_converter.errors import EngineError
from edgewise_converter.libraries import native_quiet, need, quietly


class Affine(NamedTuple):
    """real = scale * (stored - zero_point)"""

    scale: float
    zero_point: int

    def quantize(self, x: Array, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Nearest stored values, saturated."""
        limits = np.iinfo(dtype)
        stored = np.rint(x / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(stored, limits.min, limits.max), dtype=dtype)

    def dequantize(self, stored: NDArray[Any]) -> Array:
        """Real values."""
        return ((stored.astype(np.int32) - self.zero_point) * np.float32(self.scale)).astype(np.float32)


class LitertRunner(Runner):
    """A TFLite file with one input and one output."""

    engine = "litert"

    def __init__(self, data: bytes) -> None:
        module = need("ai_edge_litert.interpreter")
        self.version = str(need("importlib.metadata").version("ai-edge-litert"))
        try:
            with quietly(), native_quiet():  # LiteRT tells of its delegate
                self._interpreter = module.Interpreter(model_content=data, num_threads=1)
                self._interpreter.allocate_tensors()
                (self._input,) = self._interpreter.get_input_details()
                (self._output,) = self._interpreter.get_output_details()
        except (ValueError, RuntimeError, TypeError) as error:
            raise EngineError(f"LiteRT cannot load the model: {error}") from error
        self._in, self._out = affine_of(self._input), affine_of(self._output)

    def infer(self, x: Array) -> Array:
        """See `Runner.infer`; one sample after another."""
        index, dtype = self._input["index"], np.dtype(self._input["dtype"])
        stored = x if self._in is None else self._in.quantize(x, dtype)
        found = []
        try:
            for i in range(len(stored)):
                self._interpreter.set_tensor(index, stored[i : i + 1])
                self._interpreter.invoke()
                found.append(self._interpreter.get_tensor(self._output["index"]))
        except (ValueError, RuntimeError, TypeError) as error:
            raise EngineError(f"LiteRT fails on the model: {error}") from error
        outputs = np.concatenate(found)
        return outputs.astype(np.float32) if self._out is None else self._out.dequantize(outputs)

    def output_step(self) -> float | None:
        """See `Runner.output_step`."""
        return None if self._out is None else self._out.scale


def affine_of(details: Mapping[str, Any]) -> Affine | None:
    """How a tensor of integers stands for real numbers; None for one of real numbers."""
    if np.dtype(details["dtype"]).kind == "f":
        return None
    scales = details["quantization_parameters"]["scales"]
    points = details["quantization_parameters"]["zero_points"]
    if len(scales) != 1 or len(points) != 1 or not scales[0] > 0:
        raise EngineError(f"the integer tensor {details['name']!r} has no scale of its own")
    return Affine(float(scales[0]), int(points[0]))
