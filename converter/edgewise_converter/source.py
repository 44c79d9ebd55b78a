"""The source model: the exported PyTorch program that every converted form is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from edgewise_protocol.manifest import TensorSpec
from numpy.typing import NDArray

from edgewise_converter.errors import ModelFileError, RunError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.program_file import load_program
from edgewise_converter.requests import Requests, Tensors
from edgewise_converter.run_directory import Run
from edgewise_converter.run_record import MODEL_FILE

_BATCH: Final = 256
FOREIGN: Final = (RuntimeError, AssertionError, TypeError, AttributeError, ValueError, IndexError, KeyError)
"""What a torch program raises on inputs that it does not take."""


@dataclass(frozen=True, slots=True)
class Source:
    """An exported program with named tensors."""

    program: Any
    """`torch.export.ExportedProgram`."""
    module: Any
    """Its callable `torch.nn.Module`, in evaluation mode."""
    inputs: tuple[TensorSpec, ...]
    """In the order of its arguments, as a client sees them: the batch, where there is one, is -1."""
    outputs: tuple[TensorSpec, ...]
    batch: int | None = -1
    """What the program takes at once: -1 for any number, None where its tensors have no batch in common."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of the first input without the batch."""
        return self.inputs[0].shape[1:]

    def infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """First output for the first input `x`, float32 (N, ...), in batches, without gradients."""
        found = self.answer(Requests({self.inputs[0].name: x}))
        return found[self.outputs[0].name]

    def call(self, feeds: Tensors) -> Tensors:
        """Answer what the program takes at once."""
        torch = need("torch")
        with torch.no_grad(), quietly():
            found = self.module(*(torch.from_numpy(np.ascontiguousarray(feeds[spec.name])) for spec in self.inputs))
        flat, _ = torch.utils._pytree.tree_flatten(found)
        return {spec.name: value.detach().numpy() for spec, value in zip(self.outputs, flat, strict=True)}

    def answer(self, requests: Requests) -> Tensors:
        """Outputs (N, ...) for requests, in batches where the program takes any number, or a fixed one of several."""
        if self.batch is not None and self.batch != 1 and requests.batched:
            size = _BATCH if self.batch == -1 else self.batch
            answers = [self._group(requests, start, size) for start in range(0, len(requests), size)]
            return {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}
        answers = [self.call(feeds) for feeds in requests.each()]
        join = np.concatenate if requests.batched else np.stack
        return {name: join([a[name] for a in answers]) for name in answers[0]}

    def _group(self, requests: Requests, start: int, size: int) -> Tensors:
        """Outputs for up to `size` requests; a fixed batch is filled up with the last of them."""
        end = min(start + size, len(requests))
        taken = np.arange(start, end if self.batch == -1 else start + size)
        found = self.call(requests.take(np.minimum(taken, end - 1)).feeds)
        return {name: rows[: end - start] for name, rows in found.items()}


def load_source(run: Run) -> Source:
    """Load the run's `model.pt2`.

    Raises:
        RunError: it does not load, or is not of the form that the record describes.
        MissingExtraError: torch is not installed.
    """
    data = run.read(MODEL_FILE)
    try:
        with quietly():
            program = load_program(data, MODEL_FILE)
            module = program.module()
    except ModelFileError as error:
        raise RunError(str(error)) from error
    except Exception as error:
        raise RunError(f"{MODEL_FILE} is not a program that this torch can load: {error}") from error
    signature = program.graph_signature
    if len(signature.user_inputs) != 1 or len(signature.user_outputs) != 1:
        raise RunError(
            f"{MODEL_FILE} has {len(signature.user_inputs)} inputs and {len(signature.user_outputs)} outputs; "
            f"a run's has one of each: convert {MODEL_FILE} by its own path, with --calibration and --heldout"
        )
    evaluating(module)
    source = Source(program, module, (run.record.input,), (run.record.output,))
    _probe(source)
    return source


def evaluating(module: Any) -> None:
    """Mark a module as one that is not trained; an exported one refuses `eval()`, and was exported in that mode."""
    for part in module.modules():
        part.training = False


def _probe(source: Source) -> None:
    """Run batches of one and two: the batch must be free, the output as recorded."""
    wanted = source.outputs[0].shape[1:]
    for batch in (1, 2):
        try:
            found = source.infer(np.zeros((batch, *source.sample_shape), np.float32))
        except FOREIGN as error:
            raise RunError(f"{MODEL_FILE} does not run on a batch of {batch}: {error}") from error
        if found.dtype != np.float32 or found.shape != (batch, *wanted):
            raise RunError(f"{MODEL_FILE} gives {found.dtype} {list(found.shape)}; the record says {[batch, *wanted]}")
