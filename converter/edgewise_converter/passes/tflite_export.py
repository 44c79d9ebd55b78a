"""PyTorch to TFLite float32, by litert-torch. A TFLite file's batch is fixed: it is 1."""

from __future__ import annotations

from typing import Any, Final

from edgewise_converter.errors import PassError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.tflite_catalogue import TfliteExportConfig

MAGIC: Final = b"TFL3"
"""File identifier of a TFLite flatbuffer, at offset 4."""


def apply(materials: Materials, before: None, config: TfliteExportConfig) -> Artifact:
    """Convert the source; the file's signature uses the record's names of input and output.

    Raises:
        PassError: litert-torch cannot lower the model.
    """
    torch = need("torch")
    litert_torch = need("litert_torch")
    named = _with_named_output(torch, materials.torch_source().module, materials.outputs[0].name)
    sample = torch.zeros((1, *materials.torch_source().sample_shape), dtype=torch.float32)
    try:
        with quietly():
            data = litert_torch.convert(named, sample_kwargs={materials.inputs[0].name: sample}).model_content()
    except Exception as error:
        raise PassError(f"litert-torch cannot convert {materials.model} to TFLite: {error}") from error
    if data[4:8] != MAGIC:
        raise PassError("litert-torch gave something that is not a TFLite file")
    return Artifact(bytes(data), "tflite", "float32")


def _with_named_output(torch: Any, inner: Any, output: str) -> Any:
    """The module with its one output named, so that the signature carries the name."""

    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **inputs: Any) -> dict[str, Any]:
            (x,) = inputs.values()
            return {output: self.inner(x)}

    # The class's name becomes part of the file's tensor names: keep this module's out of it.
    Model.__module__, Model.__qualname__ = "model", "Model"
    model = Model()
    model.training = False
    return model
