"""Danger: a `.pt2` file from elsewhere that runs its maker's code while it is read."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgewise_converter.errors import ModelFileError
from edgewise_converter.program_file import load_program

Change = Callable[[str, bytes], bytes]


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two inputs, a free batch and a free length, whose shapes are computed with."""
    import torch

    class Sliced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv1d(3, 4, 3)
            self.register_buffer("scale", torch.ones(4, 1))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            half = self.conv(x)[:, :, : x.shape[2] // 2] * self.scale
            found: torch.Tensor = half.sum((1, 2)) * x.shape[2] + y.sum(1)
            return found

    module = Sliced()
    for part in module.modules():
        part.training = False
    batch, length = torch.export.Dim.AUTO, torch.export.Dim.AUTO
    shapes = ({0: batch, 2: length}, {0: batch})
    path = tmp_path_factory.mktemp("program") / "sliced.pt2"
    exported = torch.export.export(module, (torch.zeros(2, 3, 20), torch.zeros(2, 5)), dynamic_shapes=shapes)
    torch.export.save(exported, str(path))
    return path.read_bytes()


def changed(data: bytes, change: Change, added: dict[str, bytes] | None = None) -> bytes:
    """An archive with its members changed, and others added under its root folder."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(out, "w") as after:
        root = before.namelist()[0].partition("/")[0]
        for name in before.namelist():
            after.writestr(name, change(name, before.read(name)))
        for name, content in (added or {}).items():
            after.writestr(f"{root}/{name}", content)
    return out.getvalue()


def unchanged(_name: str, content: bytes) -> bytes:
    return content


def in_graph(change: Callable[[dict[str, Any]], None]) -> Change:
    """A change of the graph's document."""

    def apply(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return apply


def test_a_program_with_computed_shapes_is_loaded_and_answers(program: bytes) -> None:
    import torch

    module = load_program(program, "sliced.pt2").module()
    assert module(torch.ones(3, 3, 24), torch.ones(3, 5)).shape == (3,)


def test_objects_that_unpickling_makes_are_refused_and_not_made(program: bytes, tmp_path: Path) -> None:
    import torch

    mark = tmp_path / "ran"
    saved = io.BytesIO()
    torch.save(Touch(mark), saved)

    def sample_inputs(name: str, content: bytes) -> bytes:
        return saved.getvalue() if "sample_inputs" in name else content

    def opaque(name: str, content: bytes) -> bytes:
        if not name.endswith("constants_config.json"):
            return content
        return json.dumps({"config": {"c": {"path_name": "opaque_obj_0", "use_pickle": True}}}).encode()

    def weights(name: str, content: bytes) -> bytes:
        if not name.endswith("weights_config.json"):
            return content
        document = json.loads(content)
        document["config"]["conv.weight"] |= {"use_pickle": True, "path_name": "weight_9"}
        return json.dumps(document).encode()

    for hostile in (
        changed(program, sample_inputs),
        changed(program, opaque, {"data/constants/opaque_obj_0": pickle.dumps(Touch(mark))}),
        changed(program, weights, {"data/weights/weight_9": saved.getvalue()}),
        changed(program, unchanged, {"data/weights/model.pt": saved.getvalue()}),
    ):
        with pytest.raises(ModelFileError, match=r"pickled.*was not opened"):
            load_program(hostile, "sliced.pt2")
        assert not mark.exists()


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').getcwd()",
        "open('ran', 'w')",
        "(lambda: 1)()",
        "eval(chr(49))",
        "[print][0]('x')",
        "L['x'].size.__self__",
    ],
)
def test_expressions_that_are_more_than_arithmetic_are_refused(
    program: bytes, expression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def guard(document: dict[str, Any]) -> None:
        document["guards_code"] = [expression]

    def size(document: dict[str, Any]) -> None:
        sizes = document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        next(s for s in sizes if "as_expr" in s)["as_expr"]["expr_str"] = expression

    for change in (guard, size):
        with pytest.raises(ModelFileError, match="the shape expression"):
            load_program(changed(program, in_graph(change)), "sliced.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.load",
        "torch.ops.load_library",
        "torch.nn.modules.module.torch.os.system",
        "_operator.call",
    ],
)
def test_calls_of_what_is_no_operator_are_refused(program: bytes, target: str) -> None:
    def call(document: dict[str, Any]) -> None:
        document["graph_module"]["graph"]["nodes"][0]["target"] = target

    def argument(document: dict[str, Any]) -> None:
        document["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = {"as_operator": target}

    for change in (call, argument):
        with pytest.raises(ModelFileError, match=f"a call of '{target}'"):
            load_program(changed(program, in_graph(change)), "sliced.pt2")


def test_compiled_code_and_doubled_names_are_refused(program: bytes) -> None:
    with pytest.raises(ModelFileError, match="compiled code"):
        load_program(changed(program, unchanged, {"data/aotinductor/model/a.so": b"\x7fELF"}), "sliced.pt2")
    with pytest.raises(ModelFileError, match="two files of one name"):
        load_program(changed(program, unchanged, {"MODELS/model.json": b"{}"}), "sliced.pt2")
