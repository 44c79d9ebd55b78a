"""From a model file to a runner."""

from __future__ import annotations

from edgewise_profiles.schema import Format

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
