"""ONNX float32 to float16: weights and arithmetic in half precision, float32 at the door."""

from __future__ import annotations

from edgewise_converter.errors import PassError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.onnx_catalogue import OnnxFloat16Config
from edgewise_converter.passes.onnx_graph import canonical


def apply(materials: Materials, before: Artifact, config: OnnxFloat16Config) -> Artifact:
    """Convert an exported graph.

    Raises:
        PassError: the converter refuses the graph.
    """
    onnx = need("onnx")
    float16 = need("onnxruntime.transformers.float16")
    try:
        with quietly():
            model = float16.convert_float_to_float16(
                onnx.load_from_string(before.data),
                min_positive_val=config.min_positive,
                max_finite_val=config.max_finite,
                keep_io_types=True,
            )
    except (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise PassError(f"{materials.model} cannot be converted to float16: {error}") from error
    data = canonical(model, input_name=materials.inputs[0].name, output_name=materials.outputs[0].name)
    return Artifact(data, "onnx", "float16")
