"""PyTorch to TFLite float32, by litert-torch. A TFLite file's shapes are fixed: a free batch becomes 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from edgewise_protocol.manifest import TensorSpec

from edgewise_converter.engines.dtypes import NUMPY
from edgewise_converter.errors import ModelFileError, PassError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.tflite_catalogue import TfliteExportConfig
from edgewise_converter.tflite_file.reading import read

MAGIC: Final = b"TFL3"
"""File identifier of a TFLite flatbuffer, at offset 4."""


def apply(materials: Materials, before: None, config: TfliteExportConfig) -> Artifact:
    """Convert the source; the file's signature uses the record's names of inputs and outputs.

    Raises:
        PassError: litert-torch cannot lower the model, or the file could not tell its tensors apart.
    """
    torch = need("torch")
    litert_torch = need("litert_torch")
    source = materials.torch_source()
    _check_types(materials)
    samples = {spec.name: _sample(torch, spec, source.batch, materials.model) for spec in materials.inputs}
    named = _with_named_outputs(torch, source.module, materials.input_names, materials.output_names)
    # Otherwise litert-torch makes 64-bit integers 32-bit ones: clients would send other types than to ONNX forms.
    wide = any(spec.dtype == "INT64" for spec in (*materials.inputs, *materials.outputs))
    try:
        with quietly():
            data = litert_torch.convert(named, sample_kwargs=samples, enable_x64=wide).model_content()
    except Exception as error:
        raise PassError(f"litert-torch cannot convert {materials.model} to TFLite: {error}") from error
    if data[4:8] != MAGIC:
        raise PassError("litert-torch gave something that is not a TFLite file")
    _check_apart(bytes(data), materials.model)
    return Artifact(bytes(data), "tflite", "float32")


def _check_types(materials: Materials) -> None:
    for spec in (*materials.inputs, *materials.outputs):
        if spec.dtype == "FP64":
            raise PassError(
                f"the tensor {spec.name!r} of {materials.model} is float64, which TFLite does not compute in: let the "
                "module take and give float32"
            )


def _sample(torch: Any, spec: TensorSpec, batch: int | None, model: str) -> Any:
    """Zeros of the shape and type that the file will take."""
    first = () if batch is None else (1 if batch == -1 else batch,)
    shape = (*first, *spec.shape[len(first) :])
    if -1 in shape:
        raise PassError(
            f"the input {spec.name!r} of {model} has the shape {list(spec.shape)}: a TFLite file has fixed sizes but "
            "for a batch that begins all inputs and outputs; let every output begin with it, or export fixed sizes"
        )
    return torch.zeros(shape, dtype=getattr(torch, NUMPY[spec.dtype].name))


def _check_apart(data: bytes, model: str) -> None:
    """Hold every input and output to be a tensor of its own: engines know them by their tensors.

    Raises:
        PassError: two names are of one tensor, or the file cannot be read.
    """
    try:
        (signature,) = read(data, model).signatureDefs
    except (ModelFileError, ValueError) as error:
        raise PassError(f"litert-torch gave no sound TFLite file of {model}: {error}") from error
    taken = {int(entry.tensorIndex): f"input {bytes(entry.name).decode()!r}" for entry in signature.inputs}
    for entry in sorted(signature.outputs, key=lambda e: bytes(e.name)):
        name, other = bytes(entry.name).decode(), taken.get(int(entry.tensorIndex))
        if other is not None:
            raise PassError(
                f"the output {name!r} of {model} always equals its {other}, and TFLite gives a tensor one name only: "
                "leave that output out"
            )
        taken[int(entry.tensorIndex)] = f"output {name!r}"


def _with_named_outputs(torch: Any, inner: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """The module with one flat dict as its answer, so that the signature carries the outputs' names."""

    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **given: Any) -> dict[str, Any]:
            found = self.inner(*(given[name] for name in inputs))
            flat, _ = torch.utils._pytree.tree_flatten(found)
            return dict(zip(outputs, flat, strict=True))

    # The class's name becomes part of the file's tensor names: keep this module's out of it.
    Model.__module__, Model.__qualname__ = "model", "Model"
    model = Model()
    model.training = False
    return model
