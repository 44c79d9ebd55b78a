"""TFLite files, whichever runtime interprets them: LiteRT and its 32-bit forerunner have one interface.

A TFLite file has a fixed batch, so that more samples are looped over. Where its inputs or
outputs are integers and the manifest says a float type, they are quantized and dequantized
here by the file's own scale and zero point.

A file's tensors are the manifest's by name where the names are the same (the tensor's own
or that of the file's only signature), and by position otherwise: converters invent names.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
import numpy as np
from edgewise_protocol.manifest import Manifest, TensorSpec
from numpy.typing import NDArray

from edgewise_agent.engines.base import Engine, Tensors
from edgewise_agent.engines.batches import run_fixed
from edgewise_agent.engines.dtypes import NUMPY, name_of
from edgewise_agent.engines.errors import EngineError, InferenceError, ModelFileError
from edgewise_agent.engines.quantize import Affine, dequantize, quantize

_FOREIGN: Final = (RuntimeError, ValueError, TypeError, OSError, MemoryError, SystemError)


@contextmanager
def _foreign_errors(kind: type[EngineError], what: str) -> Iterator[None]:
    try:
        yield
    except _FOREIGN as error:
        raise kind(f"{what}: {str(error)[:400]}") from error


class _Tensor(msgspec.Struct, frozen=True):
    """A manifest's tensor and the file's that stands for it."""

    spec: TensorSpec
    index: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    affine: Affine | None


class TfliteEngine(Engine):
    """A model in a TFLite interpreter, run in its caller's thread."""

    runtime: ClassVar[str]
    """The interpreter's name in messages."""

    def __init__(self, model_path: Path, manifest: Manifest, threads: int) -> None:
        super().__init__(manifest)
        with _foreign_errors(ModelFileError, f"{self.runtime} cannot load {model_path.name}"):
            self._interpreter: Any = self._open(model_path, threads)
            self._interpreter.allocate_tensors()
            signatures = self._interpreter.get_signature_list()
            files_inputs = self._interpreter.get_input_details()
            files_outputs = self._interpreter.get_output_details()
        aliases: dict[int, str] = {}
        if len(signatures) == 1:
            with _foreign_errors(ModelFileError, f"{self.runtime} cannot read the signature of {model_path.name}"):
                runner = self._interpreter.get_signature_runner(next(iter(signatures)))
                for details in (runner.get_input_details(), runner.get_output_details()):
                    aliases |= {int(found["index"]): name for name, found in details.items()}
        self._sources = _match(manifest.inputs, files_inputs, aliases, "input")
        self._sinks = _match(manifest.outputs, files_outputs, aliases, "output")
        free = all(spec.shape and spec.shape[0] == -1 for spec in manifest.inputs)
        batches = {source.shape[0] for source in self._sources if source.shape}
        if free and len(batches) != 1:
            raise ModelFileError(f"the model file's inputs have different batches: {sorted(batches)}")
        self._batch = batches.pop() if free else None

    @abstractmethod
    def _open(self, model_path: Path, threads: int) -> Any:
        """The runtime's `Interpreter` of a file."""

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        if self._batch is not None:
            return run_fixed(self._run_once, inputs, self._batch)
        return self._run_once(inputs)

    def _run_once(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        ready = [(source.index, _to_file(source, inputs[source.spec.name])) for source in self._sources]
        with _foreign_errors(InferenceError, f"{self.runtime} failed"):
            for index, array in ready:
                self._interpreter.set_tensor(index, array)
            self._interpreter.invoke()
            return {sink.spec.name: _from_file(sink, self._interpreter.get_tensor(sink.index)) for sink in self._sinks}

    def close(self) -> None:
        self._interpreter = None


def _to_file(source: _Tensor, array: NDArray[Any]) -> NDArray[Any]:
    if source.affine is not None:
        return quantize(array, source.affine, source.dtype, source.spec.name)
    return array if array.dtype == source.dtype else array.astype(source.dtype)


def _from_file(sink: _Tensor, array: NDArray[Any]) -> NDArray[Any]:
    return array if sink.affine is None else dequantize(array, sink.affine)


def _match(
    specs: Sequence[TensorSpec], details: Sequence[Mapping[str, Any]], aliases: Mapping[int, str], what: str
) -> list[_Tensor]:
    by_name = {str(found["name"]): found for found in details}
    by_name |= {aliases[int(found["index"])]: found for found in details if int(found["index"]) in aliases}
    named = [by_name.get(spec.name) for spec in specs]
    if all(found is not None for found in named) and (what == "output" or len(specs) == len(details)):
        chosen = [found for found in named if found is not None]
    elif all(found is None for found in named) and len(specs) == len(details):
        chosen = list(details)
    else:
        raise ModelFileError(
            f"the manifest names the {what}s {[s.name for s in specs]}; the model file has {sorted(by_name)}"
        )
    return [_tensor(spec, found, what) for spec, found in zip(specs, chosen, strict=True)]


def _tensor(spec: TensorSpec, found: Mapping[str, Any], what: str) -> _Tensor:
    got, wanted = np.dtype(found["dtype"]), NUMPY[spec.dtype]
    shape = tuple(int(size) for size in found["shape"])
    if len(shape) != len(spec.shape) or any(s not in (-1, f) for s, f in zip(spec.shape, shape, strict=True)):
        raise ModelFileError(
            f"{what} {spec.name!r} has the shape {list(spec.shape)} in the manifest, {list(shape)} in the model file"
        )
    affine = None
    if wanted.kind == "f" and got.kind in "iu":
        scales = found["quantization_parameters"]["scales"]
        points = found["quantization_parameters"]["zero_points"]
        if len(scales) != 1 or len(points) != 1 or not np.isfinite(scales[0]) or scales[0] <= 0:
            raise ModelFileError(
                f"{what} {spec.name!r} is {spec.dtype} in the manifest, {name_of(got)} in the model file, "
                "which gives no scale to convert by"
            )
        affine = Affine(float(scales[0]), int(points[0]))
    elif got != wanted and not (got.kind == wanted.kind == "f"):
        raise ModelFileError(f"{what} {spec.name!r} is {spec.dtype} in the manifest, {name_of(got)} in the model file")
    return _Tensor(spec, int(found["index"]), got, shape, affine)
