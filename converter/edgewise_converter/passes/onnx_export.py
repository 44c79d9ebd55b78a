"""PyTorch to ONNX float32, by torch's dynamo exporter."""

from __future__ import annotations

from edgewise_converter.errors import PassError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.onnx_catalogue import OnnxExportConfig
from edgewise_converter.passes.onnx_graph import canonical


def apply(materials: Materials, before: None, config: OnnxExportConfig) -> Artifact:
    """Export the source; the batch stays free.

    Raises:
        PassError: torch cannot express the model in this operator set.
    """
    torch = need("torch")
    need("onnxscript")
    if both := sorted(set(materials.input_names) & set(materials.output_names)):
        raise PassError(
            f"an input and an output of {materials.model} are both called {both[0]!r}, and ONNX gives a name to one "
            "tensor only: call the output otherwise"
        )
    try:
        with quietly():
            program = torch.onnx.export(
                materials.torch_source().program,
                dynamo=True,
                opset_version=config.opset,
                input_names=materials.input_names,
                output_names=materials.output_names,
                external_data=False,
                optimize=True,
                verbose=False,
            )
            model = program.model_proto
    except Exception as error:
        raise PassError(f"torch cannot export {materials.model} to ONNX: {error}") from error
    data = canonical(model, materials.input_names, materials.output_names)
    return Artifact(data, "onnx", "float32")
