"""PyTorch to ONNX float32, by torch's dynamo exporter."""

from __future__ import annotations

from edgewise_converter.errors import PassError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.configs import OnnxExportConfig
from edgewise_converter.passes.onnx_graph import canonical


def apply(materials: Materials, before: None, config: OnnxExportConfig) -> Artifact:
    """Export the source; the batch stays free.

    Raises:
        PassError: torch cannot express the model in this operator set.
    """
    torch = need("torch")
    need("onnxscript")
    record = materials.source.record
    try:
        with quietly():
            program = torch.onnx.export(
                materials.source.program,
                dynamo=True,
                opset_version=config.opset,
                input_names=[record.input.name],
                output_names=[record.output.name],
                external_data=False,
                optimize=True,
                verbose=False,
            )
            model = program.model_proto
    except Exception as error:
        raise PassError(f"torch cannot export {record.model} to ONNX: {error}") from error
    return Artifact(canonical(model, input_name=record.input.name, output_name=record.output.name), "onnx", "float32")
