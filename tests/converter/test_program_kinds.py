"""Programs of the usual kinds, as torch saves them: each must be let in, and answer the same."""

from __future__ import annotations

import io
from typing import Any

import pytest
from edgewise_converter.program_file import load_program


def genuine() -> dict[str, tuple[Any, tuple[Any, ...], Any]]:
    """Modules of the usual kinds, an example, and what is free of it."""
    import torch

    class Recurrent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                scaled = x * 2
            found: torch.Tensor = self.lstm(scaled)[0][:, -1]
            return found

    layers = torch.nn
    convolutions = layers.Sequential(
        layers.Conv2d(3, 8, 3, stride=2), layers.BatchNorm2d(8), layers.ReLU(inplace=True), layers.MaxPool2d(2)
    )
    encoder = layers.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    free = torch.export.Dim.AUTO
    return {
        "cnn": (convolutions, (torch.rand(2, 3, 24, 24),), ({0: free, 2: free, 3: free},)),
        "transformer": (encoder, (torch.rand(2, 5, 8),), ({0: free, 1: free},)),
        "lstm": (Recurrent(), (torch.rand(2, 5, 3),), ({0: free, 1: free},)),
    }


# What torch says of the weights of an LSTM.
@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("kind", ["cnn", "transformer", "lstm"])
def test_what_torch_saves_is_opened_and_answers_the_same(kind: str, free: bool) -> None:
    import torch

    module, example, shapes = genuine()[kind]
    module.train(False)
    program = torch.export.export(module, example, dynamic_shapes=shapes if free else None)
    saved = io.BytesIO()
    torch.export.save(program, saved)
    opened = load_program(saved.getvalue(), "model.pt2")
    assert opened.range_constraints == program.range_constraints
    inputs = (torch.rand(3, *example[0].shape[1:]),) if free else example
    assert torch.equal(opened.module()(*inputs), program.module()(*inputs))
