"""TFLite float32 to full int8, calibrated by the true minimum and maximum.

ai-edge-quantizer's own default averages the ranges of samples (an exponential moving
average), which clips activations; its calibrator takes another rule, used here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import PassError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.tflite_catalogue import TfliteInt8Config
from edgewise_converter.passes.tflite_export import MAGIC

Ranges = dict[str, dict[str, NDArray[np.float32]]]


def apply(materials: Materials, before: Artifact, config: TfliteInt8Config) -> Artifact:
    """Quantize an exported file; its input and output become int8 with a scale and a zero point.

    Raises:
        PassError: the quantizer refuses the file, or leaves the file's input or output in float.
    """
    quantizer = need("ai_edge_quantizer.quantizer")
    recipe = need("ai_edge_quantizer.recipe").static_wi8_ai8()
    samples = materials.calibration.spread(config.calibration_samples).feeds[materials.inputs[0].name]
    try:
        ranges = measure_ranges(before.data, samples, materials.inputs[0].name)
        with quietly(progress_bars=True):
            result = quantizer.Quantizer(bytearray(before.data), recipe).quantize(
                ranges, enable_progress_bar=False, enable_progress_report=False
            )
    except (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise PassError(f"{materials.model} cannot be quantized to int8: {error}") from error
    data = bytes(result.quantized_model or b"")
    if data[4:8] != MAGIC:
        raise PassError("ai-edge-quantizer gave something that is not a TFLite file")
    return Artifact(data, "tflite", "int8")


def measure_ranges(data: bytes, samples: NDArray[np.float32], input_name: str) -> Ranges:
    """Smallest and largest value of every activation over all samples.

    Args:
        data: a float TFLite file of batch 1 with one signature.
        samples: (N, ...) float32.
        input_name: the signature's input.

    Returns:
        per tensor name `min` and `max`, as ai-edge-quantizer takes them.
    """
    calibrator = need("ai_edge_quantizer.calibrator")
    recipe = need("ai_edge_quantizer.recipe").static_wi8_ai8()
    rule = need("ai_edge_quantizer.utils.qsv_utils").min_max_update
    manager = need("ai_edge_quantizer.recipe_manager").RecipeManager()
    with quietly(progress_bars=True):
        manager.load_quantization_recipe(recipe)
        work = calibrator.Calibrator(bytearray(data), num_threads=1, qsv_update_func=rule)
        (signature,) = work.get_signature_list()
        # A list, not a generator: the calibrator goes through it twice, first to count.
        work.calibrate({signature: [{input_name: samples[i : i + 1]} for i in range(len(samples))]}, manager)
        ranges: Ranges = work.get_model_qsvs()
    return ranges
