"""The passes that make TFLite files, and their settings.

All but the export read any float TFLite file, with or without a signature, and also one whose
constants are stored as float16 or sparsely: these are unfolded first.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from edgewise_converter.passes.entry import CalibrationSamples, PassEntry

Kept = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=1024)], ...], Meta(max_length=10_000)]
"""Layers that stay in float: names as the pass's `layers` gives them."""
Ranges = Literal["minmax", "percentile", "average"]
"""How an activation's range comes from the calibration samples: `minmax` takes the smallest and the
largest value of all; `percentile` the `percentile` share of every sample's values, then the widest of all
samples; `average` the moving average over the samples of their smallest and largest."""
Percentile = Annotated[float, Meta(ge=90.0, le=100.0)]
"""Per cent of the values of one sample that lie within its range, an equal share cut off at each end."""


class TfliteExportConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PyTorch to TFLite, float32, batch 1."""


class TfliteCompactConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TFLite of any precision without metadata, names of inner tensors and what else no engine needs."""


class TfliteFloat32Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TFLite to plain float32: constants stored narrow or sparsely are unfolded, metadata dropped."""


class TfliteFloat16Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TFLite float32 to float16 weights; they are widened as the file is loaded, and computed in float32."""

    keep_float: Kept = ()


class TfliteInt8DynamicConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TFLite float32 to int8 weights per channel; activations are quantized as they come."""

    keep_float: Kept = ()


class TfliteInt8Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TFLite float32 to int8, weights per channel; full int8 unless layers are kept in float."""

    calibration_samples: CalibrationSamples = 512
    ranges: Ranges = "minmax"
    percentile: Percentile = 99.99
    """Only for the ranges of that name."""
    io: Literal["int8", "float32"] = "int8"
    """What inputs and outputs of real numbers are in the file; microcontrollers need int8."""
    keep_float: Kept = ()


class TfliteInt16x8Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TFLite float32 to int8 weights per channel and int16 activations."""

    calibration_samples: CalibrationSamples = 512
    io: Literal["int16", "float32"] = "float32"
    """What inputs and outputs of real numbers are in the file."""
    keep_float: Kept = ()


_LITERT: Final = ("ai-edge-litert",)
_QUANTIZER: Final = ("ai-edge-litert", "ai-edge-quantizer")
ENTRIES: Final = (
    PassEntry(
        "tflite_export", "export to TFLite", None, "tflite", "float32", TfliteExportConfig, ("torch", "litert-torch")
    ),
    PassEntry("tflite_compact", "TFLite without ballast", "tflite", "tflite", None, TfliteCompactConfig, _LITERT),
    PassEntry("tflite_float32", "TFLite to plain float32", "tflite", "tflite", "float32", TfliteFloat32Config, _LITERT),
    PassEntry(
        "tflite_float16", "TFLite to half precision", "tflite", "tflite", "float16", TfliteFloat16Config, _LITERT
    ),
    PassEntry(
        "tflite_int8_dynamic",
        "TFLite to int8 weights",
        "tflite",
        "tflite",
        "int8-dynamic",
        TfliteInt8DynamicConfig,
        _QUANTIZER,
    ),
    PassEntry("tflite_int8", "TFLite to full int8", "tflite", "tflite", "int8", TfliteInt8Config, _QUANTIZER),
    PassEntry(
        "tflite_int16x8",
        "TFLite to int8 weights and int16 activations",
        "tflite",
        "tflite",
        "int16x8",
        TfliteInt16x8Config,
        _QUANTIZER,
    ),
)
