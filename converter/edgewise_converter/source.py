"""The source model: the exported PyTorch program that every converted form is held against."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import RunError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.run_directory import Run
from edgewise_converter.run_record import MODEL_FILE, RunRecord

_BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class Source:
    """An exported program with one input and one output, float32, free batch size."""

    program: Any
    """`torch.export.ExportedProgram`."""
    module: Any
    """Its callable `torch.nn.Module`, in evaluation mode."""
    record: RunRecord

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one input without the batch."""
        return self.record.input.shape[1:]

    def infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs for `x`, float32 (N, ...), in batches, without gradients."""
        torch = need("torch")
        found = []
        with torch.no_grad(), quietly():
            for start in range(0, len(x), _BATCH):
                batch = torch.from_numpy(np.ascontiguousarray(x[start : start + _BATCH]))
                found.append(self.module(batch).numpy())
        return np.concatenate(found)


def load_source(run: Run) -> Source:
    """Load the run's `model.pt2`.

    Raises:
        RunError: it does not load, or is not of the form that the record describes.
        MissingExtraError: torch is not installed.
    """
    torch = need("torch")
    data = run.read(MODEL_FILE)
    try:
        with quietly():
            program = torch.export.load(io.BytesIO(data))
            module = program.module()
    except Exception as error:
        raise RunError(f"{MODEL_FILE} is not a program that this torch can load: {error}") from error
    signature = program.graph_signature
    if len(signature.user_inputs) != 1 or len(signature.user_outputs) != 1:
        raise RunError(
            f"{MODEL_FILE} has {len(signature.user_inputs)} inputs and {len(signature.user_outputs)} outputs; "
            "one of each is needed"
        )
    for part in module.modules():
        part.training = False  # an exported module refuses eval(); it was exported in that mode
    source = Source(program, module, run.record)
    _probe(source)
    return source


def _probe(source: Source) -> None:
    """Run batches of one and two: the batch must be free, the output as recorded."""
    wanted = source.record.output.shape[1:]
    for batch in (1, 2):
        try:
            found = source.infer(np.zeros((batch, *source.sample_shape), np.float32))
        except (RuntimeError, AssertionError, TypeError, AttributeError) as error:
            raise RunError(f"{MODEL_FILE} does not run on a batch of {batch}: {error}") from error
        if found.dtype != np.float32 or found.shape != (batch, *wanted):
            raise RunError(f"{MODEL_FILE} gives {found.dtype} {list(found.shape)}; the record says {[batch, *wanted]}")
