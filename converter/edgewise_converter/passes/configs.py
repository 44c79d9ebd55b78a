"""The settings of each pass: frozen values that can be compared, hashed and reported."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

CalibrationSamples = Annotated[int, Meta(ge=1, le=100_000)]


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


class TfliteExportConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PyTorch to TFLite, float32, batch 1."""


class TfliteInt8Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TFLite float32 to full int8, weights per channel, inputs and outputs int8 too."""

    calibration_samples: CalibrationSamples = 512


PassConfig = OnnxExportConfig | OnnxFloat16Config | OnnxInt8Config | TfliteExportConfig | TfliteInt8Config
