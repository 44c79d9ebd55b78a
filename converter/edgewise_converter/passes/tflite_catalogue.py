"""The passes that make TFLite files, and their settings."""

from __future__ import annotations

from typing import Final

import msgspec

from edgewise_converter.passes.entry import CalibrationSamples, PassEntry


class TfliteExportConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PyTorch to TFLite, float32, batch 1."""


class TfliteInt8Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TFLite float32 to full int8, weights per channel, inputs and outputs int8 too."""

    calibration_samples: CalibrationSamples = 512


ENTRIES: Final = (
    PassEntry(
        "tflite_export", "export to TFLite", None, "tflite", "float32", TfliteExportConfig, ("torch", "litert-torch")
    ),
    PassEntry(
        "tflite_int8", "TFLite to full int8", "tflite", "tflite", "int8", TfliteInt8Config, ("ai-edge-quantizer",)
    ),
)
