"""The model as a `torch.export` program: what the converter takes, without this model's code."""

from __future__ import annotations

import copy
import io
from typing import Final

import torch
from torch import Tensor, nn

from edgewise_trainer.errors import ExportError

MAX_BATCH: Final = 65_536
_PARITY: Final = 1e-5


class _OneInput(nn.Module):
    """Names the input `x`, whatever the model calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)  # type: ignore[no-any-return]


def export_program(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Export `model` in evaluation mode, with a free batch.

    Args:
        model: takes one float32 tensor, gives one; it is not changed.
        example: a batch of at least 2 samples, shape (N, ...); none of it is stored.

    Raises:
        ExportError: torch cannot export it, or the program answers otherwise than the model.
    """
    wrapped = _OneInput(copy.deepcopy(model)).eval()
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    try:
        with torch.no_grad():
            # Zeros, because the example is stored in the file; two, since a batch of 1 becomes a constant.
            blank = torch.zeros_like(example[:2])
            program = torch.export.export(wrapped, (blank,), dynamic_shapes={"x": {0: batch}})
            for count in (1, len(example)):
                expected = wrapped(example[:count])
                worst = float((program.module()(example[:count]) - expected).abs().max())
                if not worst <= _PARITY * (1.0 + float(expected.abs().max())):
                    raise ExportError(f"the exported program is off by {worst:.3g} at a batch of {count}")
    except ExportError:
        raise
    except Exception as error:
        # torch.export raises whatever the traced code and its own passes raise.
        raise ExportError(f"torch cannot export the model: {str(error)[:1500]}") from error
    for node in program.graph.nodes:
        # They name the source files of this machine.
        node.meta.pop("stack_trace", None)
    return program


def encode_program(program: torch.export.ExportedProgram) -> bytes:
    """The bytes of a `.pt2` file."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()
