"""Danger: a torch model with several inputs or outputs never becomes TFLite, or under names that nobody knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgewise_converter.engines.named_tflite import NamedTflite
from edgewise_converter.errors import ModelFileError, PassError
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.registry import PASSES
from edgewise_converter.requests import Requests
from edgewise_converter.sources.opening import open_model
from edgewise_converter.sources.reading import Wanted
from edgewise_converter.sources.torch_program import source_of
from torch import nn

QUANTIZING = {"tflite_float16": 0.01, "tflite_int8_dynamic": 0.05, "tflite_int8": 0.2, "tflite_int16x8": 0.05}
"""With the error that each may cost, of an output's spread."""
FREE = {0: torch.export.Dim("n")}
DRAW = np.random.default_rng(0)
X, Z = DRAW.uniform(-1, 1, (2, 64, 8)).astype(np.float32)
IDS = DRAW.integers(0, 20, (64, 5))


class Parts(nn.Module):
    """Layers that the models below share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.other = nn.Linear(8, 32), nn.Linear(32, 3), nn.Linear(32, 2)
        self.table = nn.Embedding(20, 8)
        self.training = False


class Tuple(Parts):
    def forward(self, x: Any) -> Any:
        hidden = torch.relu(self.body(x))
        return self.head(hidden), self.other(hidden)


class Dict(Tuple):
    def forward(self, x: Any) -> Any:
        scores, embedding = super().forward(x)
        return {"scores": scores, "an embedding/0": embedding}


class OneOfDict(Tuple):
    def forward(self, x: Any) -> Any:
        return {"scores": super().forward(x)[0]}


class Nested(Tuple):
    def forward(self, x: Any) -> Any:
        scores, embedding = super().forward(x)
        return {"z": [scores, (embedding,)], "a": scores * 2 + 1}


class TwoInputs(Tuple):
    def forward(self, z: Any, a: Any) -> Any:
        scores, embedding = super().forward(z - 2 * a)
        return {"second": embedding, "first": scores}


class Reading(Tuple):
    """Outputs that other outputs are made of."""

    def forward(self, x: Any, state: Any) -> Any:
        hidden = torch.tanh(self.body(x) + self.body(state))
        scores = self.head(hidden)
        return {"scores": scores, "shares": torch.softmax(scores, -1), "next": hidden, "positive": scores > 0}


class Ids(Parts):
    def forward(self, ids: Any) -> Any:
        scores = self.head(torch.relu(self.body(self.table(ids).mean(1))))
        return {"scores": scores, "best": scores.argmax(-1)}


class Twice(Tuple):
    def forward(self, x: Any) -> Any:
        scores, _ = super().forward(x)
        return scores, scores


class Through(Tuple):
    def forward(self, x: Any) -> Any:
        return super().forward(x)[0], x


class Overall(Tuple):
    def forward(self, x: Any) -> Any:
        return super().forward(x)[0].mean()


class Wide(Tuple):
    def forward(self, x: Any) -> Any:
        return super().forward(x)[0].double()


def materials(module: nn.Module, **feeds: Any) -> Materials:
    program = torch.export.export(
        module, tuple(torch.from_numpy(a[:2]) for a in feeds.values()), dynamic_shapes=tuple(FREE for _ in feeds)
    )
    source = source_of(program, {name: array[:2] for name, array in feeds.items()}, "small")
    return Materials("small", source.inputs, source.outputs, Requests(feeds), source)


def make(given: Materials, name: str, before: Artifact | None = None, **config: Any) -> Artifact:
    found = PASSES[name].load()(given, before, PASSES[name].config(**config))
    assert isinstance(found, Artifact)
    return found


CASES = {
    "tuple": (Tuple, {"x": X}, ["output_0", "output_1"]),
    "dict": (Dict, {"x": X}, ["scores", "an embedding/0"]),
    "one": (OneOfDict, {"x": X}, ["scores"]),
    "nested": (Nested, {"x": X}, ["output_0", "output_1", "output_2"]),
    "inputs": (TwoInputs, {"z": X, "a": Z}, ["second", "first"]),
    "integers": (Ids, {"ids": IDS}, ["scores", "best"]),
}


@pytest.mark.parametrize("case", CASES)
def test_names_types_and_answers_are_the_modules_own(case: str) -> None:
    module, feeds, outputs = CASES[case]
    given = materials(module(), **feeds)
    assert given.output_names == outputs
    file = make(given, "tflite_export")
    loaded = NamedTflite(file.data)
    assert {s.name: s for s in (*loaded.inputs, *loaded.outputs)} == {
        s.name: s for s in (*given.inputs, *given.outputs)
    }
    got, want = loaded.infer(feeds), given.torch_source().answer(given.calibration)
    for name in outputs:
        np.testing.assert_allclose(got[name], want[name], atol=1e-5)
    if case == "inputs":
        assert make(given, "tflite_export").data == file.data


@pytest.mark.parametrize("case", ["inputs", "integers", "reading"])
def test_every_quantizing_pass_takes_them(case: str) -> None:
    module, feeds, _ = {"reading": (Reading, {"x": X, "state": Z}, []), **CASES}[case]
    given = materials(module(), **feeds)
    file, want = make(given, "tflite_export"), given.torch_source().answer(given.calibration)
    for name, most in QUANTIZING.items():
        narrow = make(given, name, file)
        loaded = NamedTflite(narrow.data)
        assert loaded.precision == PASSES[name].precision
        got = loaded.infer(feeds)
        assert got.keys() == want.keys()
        for output, values in want.items():
            if values.dtype == np.float32:
                assert np.abs(got[output] - values).max() < most * np.ptp(values), (name, output)
            else:
                assert (got[output] == values).mean() > 0.8, (name, output)
        assert make(given, name, file).data == narrow.data


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Twice, "the output 'output_1' of small always equals its output 'output_0'.*leave that output out"),
        (Through, "the output 'output_1' of small always equals its input 'x'.*leave that output out"),
        (Overall, r"the input 'x' of small has the shape \[-1, 8\].*let every output begin with it"),
        (Wide, "the tensor 'output' of small is float64.*float32"),
    ],
)
def test_what_a_tflite_file_cannot_be_is_said_plainly(module: type[nn.Module], words: str) -> None:
    with pytest.raises(PassError, match=words) as caught:
        make(materials(module(), x=X), "tflite_export")
    assert "TreeSpec" not in str(caught.value)


class ByKeyword(Tuple):
    def forward(self, x: Any, *, z: Any) -> Any:
        return super().forward(x - 2 * z)


class Bag(Tuple):
    def forward(self, bag: Any) -> Any:
        return super().forward(bag["p"] - 2 * bag["q"])


class Times(Tuple):
    def forward(self, x: Any, times: int) -> Any:
        return super().forward(x)[0] * times


def saved(folder: Path, module: nn.Module, *given: Any, free: bool = True, **named: Any) -> Path:
    shapes = torch.utils._pytree.tree_map(lambda _: FREE, (given, named))
    program = torch.export.export(
        module, given, named, dynamic_shapes=(*shapes[0], *shapes[1].values()) if free else None
    )
    torch.export.save(program, str(folder / "small.pt2"))
    return folder / "small.pt2"


@pytest.mark.parametrize("case", ["keyword", "bag", "batch"])
def test_programs_take_their_inputs_in_whatever_structure_and_batch(case: str, tmp_path: Path) -> None:
    x, z = torch.from_numpy(X[:2]), torch.from_numpy(Z[:2])
    if case == "keyword":
        path, names = saved(tmp_path, ByKeyword(), x, z=z), ["x", "z"]
    elif case == "bag":
        path, names = saved(tmp_path, Bag(), {"p": x, "q": z}), ["bag_p", "bag_q"]
    else:
        path, names = saved(tmp_path, Tuple(), torch.from_numpy(X[:5]), free=False), ["x"]
    feeds = dict(zip(names, (X, Z), strict=False))
    np.savez(tmp_path / "s.npz", **feeds)
    model = open_model(str(path), Wanted(heldout=tmp_path / "s.npz"))
    assert [s.name for s in model.inputs] == names
    want = Tuple()(torch.from_numpy(X if case == "batch" else X - 2 * Z))
    file = NamedTflite(make(model.materials, "tflite_export").data)
    assert [s.name for s in file.inputs] == names
    for answers in (model.source_answers(Requests(feeds)), file.infer(feeds)):
        for name, values in zip(("output_0", "output_1"), want, strict=True):
            np.testing.assert_allclose(answers[name], values.detach().numpy(), atol=1e-5)


def test_a_program_that_takes_a_number_besides_tensors_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Times(), torch.from_numpy(X[:2]), 3, free=False)
    np.savez(tmp_path / "s.npz", x=X)
    with pytest.raises(ModelFileError, match="takes 3 besides tensors"):
        open_model(str(path), Wanted(heldout=tmp_path / "s.npz"))
