"""From a model file to a runner."""

from __future__ import annotations

from edgewise_profiles.schema import Format

from edgewise_converter.engines.named import NamedModel
from edgewise_converter.engines.runner import Runner


def open_model(data: bytes, format_: Format) -> Runner:
    """Load a model file into the engine that reads its format.

    Raises:
        EngineError: the engine refuses it.
        MissingExtraError: the engine is not installed.
    """
    if format_ == "onnx":
        from edgewise_converter.engines.onnxruntime import OnnxRuntimeRunner

        return OnnxRuntimeRunner(data)
    from edgewise_converter.engines.litert import LitertRunner

    return LitertRunner(data)


def open_named(data: bytes, format_: Format, integers: frozenset[str] = frozenset()) -> NamedModel:
    """Load a model file with any number of inputs and outputs.

    Args:
        data: the file.
        format_: of the file.
        integers: inputs of a TFLite file that the client gives as the file's own integers.

    Raises:
        EngineError: the engine refuses it.
        ModelFileError: its tensors are of a kind that devices do not serve.
        MissingExtraError: the engine is not installed.
    """
    if format_ == "onnx":
        from edgewise_converter.engines.named_onnx import NamedOnnx

        return NamedOnnx(data)
    from edgewise_converter.engines.named_tflite import NamedTflite

    return NamedTflite(data, integers)
