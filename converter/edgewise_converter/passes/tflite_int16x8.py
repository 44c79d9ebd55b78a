"""TFLite float32 to int8 weights per channel and int16 activations: near float, and small.

Activations are symmetric, biases int64. LiteRT runs most of it in reference kernels, which are slow.
"""

from __future__ import annotations

from typing import Any

from edgewise_converter.libraries import need
from edgewise_converter.passes import tflite_quantizing as quantizing
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.tflite_catalogue import TfliteInt16x8Config
from edgewise_converter.passes.tflite_static import quantize


def apply(materials: Materials, before: Artifact, config: TfliteInt16x8Config) -> Artifact:
    """Quantize a float file.

    Raises:
        UnchangedError: the file is quantized already, or nothing in it became narrower.
        PassError: the file, a name in the settings or a sample does not fit.
    """
    return quantize(
        materials,
        before,
        _recipe(),
        "int16x8",
        samples=config.calibration_samples,
        rule="minmax",
        percentile=100.0,
        float_io=config.io == "float32",
        keep_float=config.keep_float,
    )


def layers(before: Artifact) -> tuple[str, ...]:
    """Operators that lose by being quantized, in the graph's order."""
    return quantizing.active_layers(quantizing.plain(before, "the model", widen=True), _recipe())


def _recipe() -> Any:
    return need("ai_edge_quantizer.recipe").static_wi8_ai16()
