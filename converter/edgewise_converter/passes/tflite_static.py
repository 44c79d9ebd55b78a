"""Static quantization of TFLite files, to whatever width a recipe says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgewise_profiles.schema import Precision

from edgewise_converter.errors import UnchangedError
from edgewise_converter.passes import tflite_quantizing as quantizing
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.tflite_biases import mend_biases
from edgewise_converter.passes.tflite_outputs import put_back, take_off
from edgewise_converter.passes.tflite_ranges import measure
from edgewise_converter.tflite_file.forms import precision_of
from edgewise_converter.tflite_file.reading import read
from edgewise_converter.tflite_file.writing import write


def quantize(
    materials: Materials,
    before: Artifact,
    recipe: Any,
    precision: Precision,
    *,
    samples: int,
    rule: str,
    percentile: float,
    float_io: bool,
    keep_float: Sequence[str],
) -> Artifact:
    """Quantize weights and activations.

    Args:
        recipe: ai-edge-quantizer's.
        precision: of what is made.
        samples: how many calibration requests at most.
        rule, percentile: see `tflite_ranges.measure`.
        float_io: leave inputs and outputs as they are.
        keep_float: layers that stay in float.

    Raises:
        UnchangedError: the file is quantized already, or nothing in it became narrower.
        PassError: the file, a name or a sample does not fit.
    """
    file = quantizing.plain(before, materials.model, widen=True)
    kept = quantizing.kept_scopes(file, recipe, keep_float, float_io=float_io)
    measured = measure(file.data, materials.calibration.spread(samples), rule, percentile)
    shown = read(file.data, materials.model)
    outputs = take_off(shown)
    model = quantizing.run_quantizer(
        replace(file, data=write(shown, names=True)) if outputs.off else file,
        quantizing.with_kept(recipe, kept, float_io=float_io),
        quantizing.as_ranges(file, measured),
        materials,
    )
    mend_biases(model, file, materials.model)
    put_back(model, outputs, floating=float_io)
    alone = bool(keep_float) and precision_of(model) != "float32"
    if not quantizing.narrow_constants(model) and not alone:
        raise UnchangedError(
            f"the static quantization to {precision} changed nothing in {materials.model}: no weights of "
            "a convolution, of a fully connected layer or of another operator that it can quantize became int8"
        )
    return Artifact(write(model), "tflite", precision)
