"""Danger: a torch model with several inputs or outputs becomes ONNX under names that clients do not know."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from edgewise_converter.engines.named_onnx import NamedOnnx
from edgewise_converter.errors import PassError
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.registry import PASSES
from edgewise_converter.requests import Requests
from edgewise_converter.sources.torch_program import source_of
from torch import nn

X, Z = np.random.default_rng(0).normal(size=(2, 16, 8)).astype(np.float32)
FREE = {0: torch.export.Dim("n")}


class Model(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.layer = kind, nn.Linear(8, 3)
        self.training = False

    def forward(self, z: Any, a: Any) -> Any:
        scores = self.layer(z - 2 * a)
        return {
            "dict": {"second": scores, "an output/0": scores * 2},
            "nested": [scores, {"b": scores * 2, "a": (a,)}],
            "twice": (scores, scores),
            "clash": {"z": scores},
        }[self.kind]


def export(kind: str) -> tuple[Materials, Artifact]:
    feeds = {"z": X, "a": Z}
    program = torch.export.export(
        Model(kind), tuple(torch.from_numpy(a[:2]) for a in feeds.values()), dynamic_shapes=(FREE, FREE)
    )
    source = source_of(program, {name: array[:2] for name, array in feeds.items()}, "small")
    given = Materials("small", source.inputs, source.outputs, Requests(feeds), source)
    entry = PASSES["onnx_export"]
    return given, entry.load()(given, None, entry.config())


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        ("dict", ["second", "an output/0"]),
        ("nested", ["output_0", "output_1", "output_2"]),
        ("twice", ["output_0", "output_1"]),
    ],
)
def test_names_and_answers_are_the_modules_own(kind: str, outputs: list[str]) -> None:
    given, file = export(kind)
    loaded = NamedOnnx(file.data)
    assert ([s.name for s in loaded.inputs], [s.name for s in loaded.outputs]) == (["z", "a"], outputs)
    got, want = loaded.infer(given.calibration.feeds), given.torch_source().answer(given.calibration)
    for name in outputs:
        np.testing.assert_allclose(got[name], want[name], atol=1e-5)
    if kind == "dict":
        assert export(kind)[1].data == file.data


def test_an_output_that_is_called_like_an_input_is_refused_plainly() -> None:
    with pytest.raises(
        PassError, match=r"an input and an output of small are both called 'z'.*call the output otherwise"
    ):
        export("clash")
