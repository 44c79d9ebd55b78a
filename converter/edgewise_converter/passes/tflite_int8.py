"""TFLite float32 to full int8, weights per channel, by the ranges of the calibration samples.

By the int8 specification of TFLite: activations asymmetric per tensor, weights symmetric per channel,
biases int32 with the scale of input times weight.
"""

from __future__ import annotations

from typing import Any

from edgewise_converter.libraries import need
from edgewise_converter.passes import tflite_quantizing as quantizing
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.tflite_catalogue import TfliteInt8Config
from edgewise_converter.passes.tflite_static import quantize


def apply(materials: Materials, before: Artifact, config: TfliteInt8Config) -> Artifact:
    """Quantize a float file, an exported or a finished one.

    Raises:
        UnchangedError: the file is quantized already, or nothing in it became narrower.
        PassError: the file, a name in the settings or a sample does not fit.
    """
    return quantize(
        materials,
        before,
        _recipe(),
        "int8",
        samples=config.calibration_samples,
        rule=config.ranges,
        percentile=config.percentile if config.ranges == "percentile" else 100.0,
        float_io=config.io == "float32",
        keep_float=config.keep_float,
    )


def layers(before: Artifact) -> tuple[str, ...]:
    """Operators that lose by being quantized, in the graph's order."""
    return quantizing.active_layers(quantizing.plain(before, "the model", widen=True), _recipe())


def _recipe() -> Any:
    return need("ai_edge_quantizer.recipe").static_wi8_ai8()
