"""Which passes there are. The list needs no torch and no engine; a pass is loaded when it runs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from edgewise_profiles.schema import Format, Precision

from edgewise_converter.errors import PassError
from edgewise_converter.passes.configs import (
    OnnxExportConfig,
    OnnxFloat16Config,
    OnnxInt8Config,
    PassConfig,
    TfliteExportConfig,
    TfliteInt8Config,
)


class Apply(Protocol):
    """A pass at work: its module's `apply`."""

    def __call__(self, materials: Any, before: Any, config: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class PassEntry:
    """A pass: what it is called, makes and needs."""

    name: str
    title: str
    format: Format
    precision: Precision
    config: type[PassConfig]
    after: str | None
    """The pass whose artifact it takes, or None for an export of the source."""
    needs: tuple[str, ...]
    """Python distributions."""

    def load(self) -> Apply:
        """Import the pass; the libraries it needs are imported when it is applied."""
        return cast(Apply, importlib.import_module(f"edgewise_converter.passes.{self.name}").apply)


_ENTRIES: Final = (
    PassEntry(
        "onnx_export", "export to ONNX", "onnx", "float32", OnnxExportConfig, None, ("torch", "onnx", "onnxscript")
    ),
    PassEntry(
        "onnx_float16",
        "ONNX to half precision",
        "onnx",
        "float16",
        OnnxFloat16Config,
        "onnx_export",
        ("onnx", "onnxruntime"),
    ),
    PassEntry(
        "onnx_int8", "ONNX to static int8", "onnx", "int8", OnnxInt8Config, "onnx_export", ("onnx", "onnxruntime")
    ),
    PassEntry(
        "tflite_export",
        "export to TFLite",
        "tflite",
        "float32",
        TfliteExportConfig,
        None,
        ("torch", "litert-torch"),
    ),
    PassEntry(
        "tflite_int8",
        "TFLite to full int8",
        "tflite",
        "int8",
        TfliteInt8Config,
        "tflite_export",
        ("ai-edge-litert", "ai-edge-quantizer"),
    ),
)
PASSES: Final = {entry.name: entry for entry in _ENTRIES}


def find(format_: Format, precision: Precision) -> PassEntry:
    """The pass that makes a form of a model.

    Raises:
        PassError: there is none.
    """
    for entry in _ENTRIES:
        if (entry.format, entry.precision) == (format_, precision):
            return entry
    raise PassError(f"no pass makes {format_}-{precision}")
