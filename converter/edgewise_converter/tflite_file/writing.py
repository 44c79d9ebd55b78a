"""From the schema's objects to bytes that depend on the graph alone.

What no engine needs is left out: metadata, descriptions, tensors and buffers that nothing uses,
and the names of inner tensors (converters leave whole paths of layers there). Equal lists of numbers
are stored once: the zero points of weights per channel are a fifth of a small int8 file.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np

from edgewise_converter.libraries import need
from edgewise_converter.tflite_file.verify import MAGIC

_ALIGNMENT: Final = 16
"""Of constants, as the schema demands (`force_align`): kernels read them where they lie."""
_OLD_CODES: Final = 127


def write(model: Any, *, names: bool = False) -> bytes:
    """Bytes of a model; it is changed.

    Args:
        model: `ModelT`.
        names: keep the names of inner tensors.
    """
    model.description = model.metadata = model.metadataBuffer = None
    for graph in model.subgraphs:
        _drop_unused_tensors(model, graph)
        graph.debugMetadataIndex = -1
        for operator in graph.operators:
            operator.debugMetadataIndex = -1
        if not names:
            kept = {*graph.inputs, *graph.outputs}
            for index, tensor in enumerate(graph.tensors):
                tensor.name = tensor.name if index in kept else None
        for tensor in graph.tensors:
            if tensor.quantization is not None:
                tensor.quantization.min = tensor.quantization.max = None
                if not _says_something(tensor.quantization):
                    tensor.quantization = None
    _order_codes(model)
    _order_buffers(model)
    _arrays(model)
    builder = _builder()
    builder.Finish(model.Pack(builder), MAGIC)
    return bytes(builder.Output())


def _says_something(quantization: Any) -> bool:
    return bool(quantization.detailsType) or (quantization.scale is not None and len(quantization.scale) > 0)


def _builder() -> Any:
    flatbuffers = need("flatbuffers")

    class Builder(flatbuffers.Builder):  # type: ignore[misc,name-defined]
        """Constants begin at multiples of 16; other lists of numbers are stored once."""

        def __init__(self, size: int) -> None:
            super().__init__(size)
            self._stored: dict[tuple[str, bytes], Any] = {}

        def CreateNumpyVector(self, x: Any) -> Any:
            if x.dtype == np.uint8:
                return super().CreateNumpyVector(x)
            key = (x.dtype.str, x.tobytes())
            if key not in self._stored:
                self._stored[key] = super().CreateNumpyVector(x)
            return self._stored[key]

        def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:
            wide = elemSize == 1 and numElems >= _ALIGNMENT
            return super().StartVector(elemSize, numElems, _ALIGNMENT if wide else alignment)

    return Builder(1024)


_NUMBERS: Final = {"scale": np.float32, "zeroPoint": np.int64, "shape": np.int32, "shapeSignature": np.int32}


def _arrays(model: Any) -> None:
    """Lists that repeat as arrays, which the builder stores once."""
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            for holder in (tensor, tensor.quantization):
                for name, dtype in _NUMBERS.items():
                    if holder is not None and getattr(holder, name, None) is not None:
                        setattr(holder, name, np.asarray(getattr(holder, name), dtype))


def _drop_unused_tensors(model: Any, graph: Any) -> None:
    here = model.subgraphs.index(graph)
    lists = [graph.inputs, graph.outputs]
    for operator in graph.operators:
        lists += [found for found in (operator.inputs, operator.outputs, operator.intermediates) if found is not None]
    entries = [
        entry
        for signature in model.signatureDefs or ()
        if signature.subgraphIndex == here
        for entry in (*(signature.inputs or ()), *(signature.outputs or ()))
    ]
    used = sorted({i for found in lists for i in found if i >= 0} | {entry.tensorIndex for entry in entries})
    place = {old: new for new, old in enumerate(used)} | {-1: -1}
    for found in lists:
        found[:] = [place[i] for i in found]
    for entry in entries:
        entry.tensorIndex = place[entry.tensorIndex]
    graph.tensors = [graph.tensors[i] for i in used]


def _order_codes(model: Any) -> None:
    """Operator codes once each, in the order of their first use."""
    place: dict[tuple[int, bytes, int], int] = {}
    codes: list[Any] = []
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
            key = (builtin, bytes(code.customCode or b""), code.version)
            if key not in place:
                place[key] = len(codes)
                code.builtinCode, code.deprecatedBuiltinCode = builtin, min(builtin, _OLD_CODES)
                codes.append(code)
            operator.opcodeIndex = place[key]
    model.operatorCodes = codes


def _order_buffers(model: Any) -> None:
    """Equal constants once, in the order of their first use; buffer 0 stands for no data."""
    schema = need("ai_edge_litert.schema_py_generated")
    buffers = [schema.BufferT()]
    place: dict[bytes, int] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is None or len(data) == 0:
                tensor.buffer = 0
                continue
            array = np.ascontiguousarray(np.frombuffer(memoryview(data).cast("B"), np.uint8))
            digest = hashlib.sha256(array.tobytes()).digest()
            if digest not in place:
                place[digest] = len(buffers)
                buffers.append(schema.BufferT(data=array))
            tensor.buffer = place[digest]
    model.buffers = buffers
