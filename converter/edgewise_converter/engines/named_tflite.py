"""Finished TFLite files in LiteRT.

Where a file takes or gives integers by a scale, the client sees real numbers, unless the sample
shows that it means the integers themselves. A file with variables answers by what it was asked
before: its requests are one stream, which begins anew with `reset`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from edgewise_protocol.manifest import TensorSpec
from numpy.typing import NDArray

from edgewise_converter.engines.affine import Affine, affine_of
from edgewise_converter.engines.dtypes import PROTOCOL
from edgewise_converter.engines.named import FREE, NamedModel, Tensors, common_batch, with_free_batch
from edgewise_converter.errors import EngineError, ModelFileError
from edgewise_converter.libraries import native_quiet, need, quietly
from edgewise_converter.tflite_file.forms import precision_of
from edgewise_converter.tflite_file.operators import is_stateful
from edgewise_converter.tflite_file.reading import read
from edgewise_converter.tflite_file.signatures import input_names, output_names, sign

_FOREIGN: Final = (ValueError, RuntimeError, TypeError, SystemError)


class NamedTflite(NamedModel):
    """A TFLite file with at most one signature.

    Args:
        data: the file.
        integers: inputs that the client gives as the file's own integers.
        threads: of one call.

    Raises:
        ModelFileError: it is damaged, or its tensors are of a kind that devices do not serve.
        EngineError: LiteRT refuses it.
    """

    engine = "litert"

    def __init__(self, data: bytes, integers: frozenset[str] = frozenset(), threads: int = 1) -> None:
        self.version = str(need("importlib.metadata").version("ai-edge-litert"))
        self._data, self._threads = data, threads
        model = read(data, "the TFLite file")
        sign(model)
        self.stateful = is_stateful(model)
        self.precision = precision_of(model)
        self._interpreter: Any = self._load()
        taken, given = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        names = input_names(model) | output_names(model)
        self._inputs = [_Tensor(details, names, "input", integers) for details in taken]
        self._outputs = [_Tensor(details, names, "output", frozenset()) for details in given]
        self.batch = common_batch([tensor.shape for tensor in (*self._inputs, *self._outputs)])
        self.inputs = tuple(tensor.spec(self.batch) for tensor in self._inputs)
        self.outputs = tuple(tensor.spec(self.batch) for tensor in self._outputs)

    def _load(self) -> Any:
        module = need("ai_edge_litert.interpreter")
        try:
            with quietly(), native_quiet():  # LiteRT tells of its delegate
                interpreter = module.Interpreter(model_content=self._data, num_threads=self._threads)
                interpreter.allocate_tensors()
        except _FOREIGN as error:
            raise EngineError(f"LiteRT {self.version} cannot load the model: {str(error)[:400]}") from error
        return interpreter

    def reset(self) -> None:
        """See `NamedModel.reset`: loads the file anew, since LiteRT keeps resource variables otherwise."""
        if self.stateful:
            self._interpreter = self._load()

    def infer(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """See `NamedModel.infer`; samples of a stateful file are one stream, from its beginning."""
        if self.batch is not None:
            self.reset()
        return super().infer(feeds)

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
        free = [int(size) for size in details.get("shape_signature", ())]
        if what == "input" and FREE in free[1:]:
            raise ModelFileError(
                f"the input {self.name!r} has the shape {free}: a device's LiteRT takes no free dimension but the "
                "batch; export the model with a fixed shape"
            )
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
