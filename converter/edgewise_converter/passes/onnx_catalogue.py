"""The passes that make ONNX files, and their settings."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from edgewise_converter.passes.entry import CalibrationSamples, PassEntry


class OnnxExportConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PyTorch to ONNX, float32."""

    opset: Annotated[int, Meta(ge=18, le=23)] = 20


class OnnxFloat16Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ONNX float32 to float16; inputs and outputs stay float32."""

    min_positive: Annotated[float, Meta(gt=0)] = 5.96e-8
    """Smaller weights than float16's smallest are raised to it."""
    max_finite: Annotated[float, Meta(gt=0)] = 65504.0
    """Larger weights than float16's largest are lowered to it."""


class OnnxInt8Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ONNX float32 to int8: static, per channel, as QuantizeLinear / DequantizeLinear pairs."""

    reduce_range: bool
    """Weights of 7 bits, where the processor adds products in 16."""
    activations: Literal["uint8", "int8"] = "uint8"
    """`uint8` is x86's fast path, `int8` Arm's."""
    calibration_samples: CalibrationSamples = 512
    calibration_batch: Annotated[int, Meta(ge=1, le=4096)] = 64


ENTRIES: Final = (
    PassEntry("onnx_export", "export to ONNX", None, "onnx", "float32", OnnxExportConfig, ("torch", "onnxscript")),
    PassEntry("onnx_float16", "ONNX to half precision", "onnx", "onnx", "float16", OnnxFloat16Config, ("onnxruntime",)),
    PassEntry("onnx_int8", "ONNX to static int8", "onnx", "onnx", "int8", OnnxInt8Config, ("onnxruntime",)),
)
