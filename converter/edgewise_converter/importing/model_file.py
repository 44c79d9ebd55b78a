"""Reading a finished model file: which format it is, and what in it no device could take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from edgewise_profiles.schema import Format
from edgewise_protocol.bounds import MAX_BUNDLE_BYTES

from edgewise_converter.errors import ModelFileError
from edgewise_converter.libraries import need, quietly

MAX_OPSET: Final = 22
"""Of ONNX 1.17, which onnxruntime 1.22 reads: the oldest that a profile names."""
MAX_IR: Final = 10
_TFLITE_MAGIC: Final = b"TFL3"
_DEPTH: Final = 16
_FORMATS: Final[dict[str, Format]] = {".onnx": "onnx", ".tflite": "tflite"}


def read_model(path: Path) -> tuple[bytes, Format]:
    """Read a model file; its content decides what it is, and must be what its name says.

    Raises:
        ModelFileError: it cannot be read, is none, or cannot go to a device as it is.
    """
    if path.suffix not in _FORMATS:
        raise ModelFileError(f"{path.name} is neither .onnx nor .tflite")
    try:
        if path.stat().st_size > MAX_BUNDLE_BYTES:
            raise ModelFileError(f"{path.name} has {path.stat().st_size} bytes; a bundle holds {MAX_BUNDLE_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from error
    is_tflite = data[4:8] == _TFLITE_MAGIC
    if _FORMATS[path.suffix] == "tflite":
        if not is_tflite:
            raise ModelFileError(
                f"{path.name} is not a TFLite file: its identifier {_TFLITE_MAGIC.decode()} is missing"
            )
        return data, "tflite"
    if is_tflite:
        raise ModelFileError(f"{path.name} is a TFLite file: name it .tflite")
    check_onnx(data, path.name)
    return data, "onnx"


def check_onnx(data: bytes, name: str) -> None:
    """Hold an ONNX file against what a bundle may carry.

    Raises:
        ModelFileError: it is damaged, keeps weights in other files, or is too new for the devices' engines.
    """
    onnx = need("onnx")
    try:
        with quietly():
            model = onnx.load_model_from_string(data)
    except Exception as error:
        raise ModelFileError(f"{name} is not an ONNX file, or is cut short: {str(error)[:200]}") from error
    if not model.graph.node or not model.graph.input or not model.graph.output:
        raise ModelFileError(f"{name} is not an ONNX model: it has no nodes, no inputs or no outputs")
    for tensor in (*_tensors(model.graph), *(t for function in model.functions for t in _of_nodes(function.node))):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ModelFileError(
                f"{name} keeps the weights {tensor.name!r} in another file; a bundle holds one file: save the model "
                "again with onnx.save_model(model, path, save_as_external_data=False)"
            )
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset > MAX_OPSET:
        raise ModelFileError(
            f"{name} uses operator set {opset}; devices read up to {MAX_OPSET}: export with an older one, or use "
            f"onnx.version_converter.convert_version(model, {MAX_OPSET})"
        )
    if model.ir_version > MAX_IR:
        raise ModelFileError(
            f"{name} is of IR version {model.ir_version}; devices read up to {MAX_IR}: set model.ir_version = {MAX_IR} "
            "and save it again, if it uses no newer types"
        )


def _tensors(graph: Any, depth: int = 0) -> Iterator[Any]:
    """All constant tensors of a graph and of the graphs inside its nodes."""
    if depth > _DEPTH:
        raise ModelFileError(f"graphs are nested deeper than {_DEPTH}")
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from _of_nodes(graph.node, depth)


def _of_nodes(nodes: Any, depth: int = 0) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _tensors(inner, depth + 1)
