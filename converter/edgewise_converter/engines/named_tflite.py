"""Finished TFLite files in LiteRT.

Where a file takes or gives integers by a scale, the client sees real numbers, unless the sample
shows that it means the integers themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from edgewise_protocol.manifest import TensorSpec
from numpy.typing import NDArray

from edgewise_converter.engines.dtypes import PROTOCOL
from edgewise_converter.engines.litert import Affine, affine_of
from edgewise_converter.engines.named import NamedModel, Tensors, common_batch, with_free_batch
from edgewise_converter.errors import EngineError, ModelFileError
from edgewise_converter.libraries import need, quietly

_FOREIGN: Final = (ValueError, RuntimeError, TypeError, SystemError)


class NamedTflite(NamedModel):
    """A TFLite file with at most one signature.

    Args:
        data: the file.
        integers: inputs that the client gives as the file's own integers.

    Raises:
        ModelFileError: its tensors are of a kind that devices do not serve.
        EngineError: LiteRT refuses it.
    """

    engine = "litert"

    def __init__(self, data: bytes, integers: frozenset[str] = frozenset()) -> None:
        module = need("ai_edge_litert.interpreter")
        self.version = str(need("importlib.metadata").version("ai-edge-litert"))
        try:
            with quietly():
                self._interpreter = module.Interpreter(model_content=data, num_threads=1)
                self._interpreter.allocate_tensors()
                names = _signature(self._interpreter)
                taken, given = self._interpreter.get_input_details(), self._interpreter.get_output_details()
                inside = {np.dtype(t["dtype"]) for t in self._interpreter.get_tensor_details()}
        except _FOREIGN as error:
            raise EngineError(f"LiteRT {self.version} cannot load the model: {str(error)[:400]}") from error
        self._inputs = [_Tensor(details, names, "input", integers) for details in taken]
        self._outputs = [_Tensor(details, names, "output", frozenset()) for details in given]
        self.batch = common_batch([tensor.shape for tensor in (*self._inputs, *self._outputs)])
        self.inputs = tuple(tensor.spec(self.batch) for tensor in self._inputs)
        self.outputs = tuple(tensor.spec(self.batch) for tensor in self._outputs)
        self.precision = "int8" if np.dtype(np.int8) in inside else "float32"
        if self.precision == "float32" and np.dtype(np.float16) in inside:
            self.precision = "float16"

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        try:
            for tensor in self._inputs:
                self._interpreter.set_tensor(tensor.index, tensor.to_file(feeds[tensor.name]))
            self._interpreter.invoke()
            return {t.name: t.from_file(self._interpreter.get_tensor(t.index)) for t in self._outputs}
        except _FOREIGN as error:
            raise EngineError(f"LiteRT fails on the model: {str(error)[:400]}") from error

    def steps(self) -> dict[str, float]:
        """See `NamedModel.steps`."""
        return {tensor.name: tensor.affine.scale for tensor in self._outputs if tensor.affine is not None}


class _Tensor:
    """An input or output of the file, and what stands for it outside."""

    def __init__(self, details: Mapping[str, Any], names: Mapping[int, str], what: str, integers: frozenset[str]):
        self.index = int(details["index"])
        self.name = names.get(self.index, str(details["name"]))
        self.dtype = np.dtype(details["dtype"])
        self.shape = tuple(int(size) for size in details["shape"])
        if self.dtype not in PROTOCOL:
            raise ModelFileError(f"the {what} {self.name!r} is {self.dtype}, which devices do not serve")
        self.affine: Affine | None = None
        if self.dtype.kind in "iu" and self.name not in integers and len(details["quantization_parameters"]["scales"]):
            self.affine = affine_of(details)

    def spec(self, batch: int | None) -> TensorSpec:
        """As the client sees it."""
        dtype = "FP32" if self.affine is not None else PROTOCOL[self.dtype]
        return TensorSpec(name=self.name, dtype=dtype, shape=with_free_batch(self.shape, batch))

    def to_file(self, array: NDArray[Any]) -> NDArray[Any]:
        """A client's values as the file takes them."""
        return array if self.affine is None else self.affine.quantize(array, self.dtype)

    def from_file(self, array: NDArray[Any]) -> NDArray[Any]:
        """The file's values as a client gets them."""
        return array if self.affine is None else self.affine.dequantize(array)


def _signature(interpreter: Any) -> dict[int, str]:
    """Names of tensors by index, from the file's only signature."""
    signatures = interpreter.get_signature_list()
    if len(signatures) > 1:
        raise ModelFileError(
            f"the file has {len(signatures)} signatures ({', '.join(sorted(map(str, signatures)))[:200]}); "
            "export one with a single signature"
        )
    if not signatures:
        return {}
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    return {
        int(found["index"]): str(name)
        for details in (runner.get_input_details(), runner.get_output_details())
        for name, found in details.items()
    }
