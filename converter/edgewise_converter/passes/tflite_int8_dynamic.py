"""TFLite float32 to int8 weights per channel; engines quantize activations as they come.

tflite-runtime 2.14 runs such files without an error, and answers wrong: see `tflite_file.compat`.
"""

from __future__ import annotations

from typing import Any

from edgewise_converter.errors import UnchangedError
from edgewise_converter.libraries import need
from edgewise_converter.passes import tflite_quantizing as quantizing
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.tflite_catalogue import TfliteInt8DynamicConfig
from edgewise_converter.tflite_file.writing import write


def apply(materials: Materials, before: Artifact, config: TfliteInt8DynamicConfig) -> Artifact:
    """Quantize the weights of a float file.

    Raises:
        UnchangedError: the file is quantized already, or none of its weights became int8.
        PassError: the file or a name in the settings does not fit.
    """
    file = quantizing.plain(before, materials.model)
    kept = quantizing.kept_scopes(file, _recipe(), config.keep_float, float_io=True)
    model = quantizing.run_quantizer(file, quantizing.with_kept(_recipe(), kept), None, materials)
    if not quantizing.narrow_constants(model):
        raise UnchangedError(
            f"the dynamic quantization changed nothing in {materials.model}: no weights of a convolution, of a "
            "fully connected layer or of an embedding became int8"
        )
    return Artifact(write(model), "tflite", "int8-dynamic")


def layers(before: Artifact) -> tuple[str, ...]:
    """Operators whose weights are quantized, in the graph's order."""
    return quantizing.active_layers(quantizing.plain(before, "the model"), _recipe())


def _recipe() -> Any:
    return need("ai_edge_quantizer.recipe").dynamic_wi8_afp32()
