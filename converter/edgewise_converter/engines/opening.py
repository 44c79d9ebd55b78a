"""From a model file to a runner."""

from __future__ import annotations

from edgewise_profiles.schema import EngineName, Format

from edgewise_converter.c99.toolchain import has_host_compiler
from edgewise_converter.engines.named import NamedModel
from edgewise_converter.errors import EngineError
from edgewise_converter.passes.artifact import Artifact


def open_named(
    data: bytes,
    format_: Format,
    integers: frozenset[str] = frozenset(),
    engine: EngineName | None = None,
    threads: int = 1,
) -> NamedModel:
    """Load a model file with any number of inputs and outputs.

    Args:
        data: the file.
        format_: of the file.
        integers: inputs of a TFLite file that the client gives as the file's own integers.
        engine: that a device will run it in; where it cannot be here, one that reads the same format stands in.
        threads: of one call, where the engine lets one choose.

    Raises:
        EngineError: the engine refuses it.
        ModelFileError: its tensors are of a kind that devices do not serve.
        MissingExtraError: the engine is not installed.
    """
    if format_ in ("onnx", "ort"):
        from edgewise_converter.engines.named_onnx import NamedOnnx

        return NamedOnnx(data, threads, container=format_ == "ort")
    if format_ == "tflite":
        from edgewise_converter.engines.named_tflite import NamedTflite

        return NamedTflite(data, integers, threads)
    if format_ == "c99":
        from edgewise_converter.engines.named_c99 import NamedC99

        return NamedC99(data, integers)
    raise EngineError(f"no engine on this machine runs {format_} files{f' for {engine}' if engine else ''}")


def open_artifact(artifact: Artifact, integers: frozenset[str] = frozenset(), threads: int = 1) -> NamedModel:
    """Load what a pass has made, or what stands in for it on this host; see `open_named`."""
    if artifact.format == "c99" and has_host_compiler():
        # The board's own numbers, which LiteRT's may differ from by a step.
        return open_named(artifact.data, "c99", integers)
    if artifact.stand_in is not None:
        return open_artifact(artifact.stand_in, integers, threads)
    if artifact.format == "vmfb" and artifact.signature is not None:
        from edgewise_converter.engines.named_iree import NamedIree

        return NamedIree(artifact.data, *artifact.signature, artifact.precision)
    return open_named(artifact.data, artifact.format, integers, threads=threads)
