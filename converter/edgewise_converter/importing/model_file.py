"""Reading a finished model file: which format it is, and what in it no device could take."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from edgewise_profiles.schema import Format
from edgewise_protocol.bounds import MAX_BUNDLE_BYTES

from edgewise_converter.errors import ModelFileError
from edgewise_converter.importing.onnx_check import check_functions, check_operators, check_shapes, check_tensors
from edgewise_converter.importing.onnx_scan import scan
from edgewise_converter.libraries import need, quietly
from edgewise_converter.tflite_file.admission import admit

MAX_OPSET: Final = 22
"""Of ONNX 1.17, which onnxruntime 1.22 reads: the oldest that a profile names."""
MAX_IR: Final = 10
_TFLITE_MAGIC: Final = b"TFL3"
_ORT_MAGIC: Final = b"ORTM"
"""Of onnxruntime's own container, at the same place: its readers take a file for one by this alone."""
_FORMATS: Final[dict[str, Format]] = {".onnx": "onnx", ".tflite": "tflite"}


def read_model(path: Path, *, converted: bool = False) -> tuple[bytes, Format]:
    """Read a model file; its content decides what it is, and must be what its name says.

    Args:
        path: `.onnx` or `.tflite`.
        converted: see `check_onnx`.

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
        admit(data, path.name)
        return data, "tflite"
    if is_tflite:
        raise ModelFileError(f"{path.name} is a TFLite file: name it .tflite")
    check_onnx(data, path.name, converted=converted)
    return data, "onnx"


def check_onnx(data: bytes, name: str, *, converted: bool = False) -> None:
    """Hold an ONNX file against what a bundle may carry. Nothing but these bytes is read.

    Args:
        data: the file, from anywhere.
        name: of it, for messages.
        converted: whether passes still bring it to an older operator set and IR version; else it goes as it is.

    Raises:
        ModelFileError: it is damaged or absurd, keeps weights in other files, holds an operator that no
            engine has, or is too new for the devices' engines.
    """
    onnx = need("onnx")
    if data[4:8] == _ORT_MAGIC:
        raise _posing(name)
    scan(data, name)
    try:
        with quietly():
            model = onnx.load_model_from_string(data)
    except Exception as error:
        raise ModelFileError(f"{name} is not an ONNX file, or is cut short: {str(error)[:200]}") from error
    if any(_ORT_MAGIC.decode() in text[:8] for text in (model.producer_name, model.producer_version, model.domain)):
        raise _posing(name)  # it would begin so when it is written again
    if not model.graph.node or not model.graph.input or not model.graph.output:
        raise ModelFileError(f"{name} is not an ONNX model: it has no nodes, no inputs or no outputs")
    check_tensors(model, name)
    check_shapes(model, name)
    _check_versions(model, name, converted)
    check_operators(model, name)
    check_functions(model, name)


def _posing(name: str) -> ModelFileError:
    return ModelFileError(
        f"{name} begins as onnxruntime's own container (ORT) does, so engines would not read its ONNX graph: give the "
        "ONNX file that it was made of"
    )


def _check_versions(model: Any, name: str, converted: bool) -> None:
    onnx = need("onnx")
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    newest = int(onnx.defs.onnx_opset_version()) if converted else MAX_OPSET
    who = "the converter reads" if converted else "devices read"
    if opset > newest:
        mend = "" if converted else " bring it down with `edgewise convert`, or"
        raise ModelFileError(
            f"{name} uses operator set {opset}; {who} up to {newest}: export with an older one,{mend} use "
            f"onnx.version_converter.convert_version(model, {MAX_OPSET})"
        )
    newest = int(onnx.IR_VERSION) if converted else MAX_IR
    if model.ir_version > newest:
        raise ModelFileError(
            f"{name} is of IR version {model.ir_version}; {who} up to {newest}: set model.ir_version = {MAX_IR} and "
            "save it again, if it uses no newer types"
        )
