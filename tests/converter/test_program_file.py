"""Danger: a `.pt2` file from elsewhere that runs its maker's code while it is read."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
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
        "9**9**9",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "Pow(Pow(Pow(Pow(Integer(9), Integer(8)), Integer(8)), Integer(8)), Integer(8))",
        "factorial(Integer(9999999))",
        "Integer(7)!",
        "Integer(" + "9" * 21 + ")",
        "LShift(Integer(1), Integer(99999999))",
        "Symbol('s0', **{})",
        "Symbol('Add')",
        "Max(" + ", ".join(f"Symbol('u{i}')" for i in range(65)) + ")",
        "L['x'].size()[0]**L['x'].size()[1]**99",
        "-" * 30_000 + "1",
        "(" * 90 + "1" + ")" * 90,
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
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten._print.default",
        "torch.ops.aten.set_.source_Tensor",
        "torch.ops.aten.resize_.default",
        "torch.ops.aten.empty.memory_format",
        "torch.ops.aten.add.overloads",
        "torch.ops.prim.device.default",
        "torch.ops.profiler._record_function_enter.default",
        "torch.ops.higher_order.while_loop",
        "torch.ops.aten.add.Tensor.__call__",
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


def test_only_the_files_that_torch_writes_are_let_in(program: bytes) -> None:
    for name in ("models/model.jsoX", "models/other.json", "executorch/a.pte", "data/weights/../a", "models/"):
        with pytest.raises(ModelFileError, match=r"holds the file .* was not opened"):
            load_program(changed(program, unchanged, {name: b"{}"}), "sliced.pt2")
    with pytest.raises(ModelFileError, match="compiled code"):
        load_program(changed(program, unchanged, {"data/aotinductor/model/a.so": b"\x7fELF"}), "sliced.pt2")
    with pytest.raises(ModelFileError, match="two files of one name"):
        load_program(changed(program, unchanged, {"MODELS/model.json": b"{}"}), "sliced.pt2")
    load_program(changed(program, unchanged, {"extra/note.txt": b"a note"}), "sliced.pt2")


def test_a_program_under_another_ending_is_not_read(program: bytes, tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    def size(document: dict[str, Any]) -> None:
        sizes = document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        text = f"__import__('pathlib').Path({str(mark)!r}).touch()"
        next(s for s in sizes if "as_expr" in s)["as_expr"]["expr_str"] = text

    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(program)) as before, zipfile.ZipFile(out, "w") as after:
        for name in before.namelist():
            after.writestr(name.replace("model.json", "model.jsoX"), in_graph(size)(name, before.read(name)))
    with pytest.raises(ModelFileError, match="jsoX"):
        load_program(out.getvalue(), "sliced.pt2")
    assert not mark.exists()


def directory(members: dict[str, bytes], at: int) -> tuple[bytes, bytes]:
    """Members as they stand in a zip file from `at` on, and their part of its directory."""
    body, listing = bytearray(), bytearray()
    for name, content in members.items():
        numbers = (zlib.crc32(content), len(content), len(content), len(name), 0)
        where = at + len(body)
        body += struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, *numbers) + name.encode() + content
        listing += struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 33, *numbers, 0, 0, 0, 0, where)
        listing += name.encode()
    return bytes(body), bytes(listing)


def test_a_file_with_two_directories_is_refused(program: bytes, tmp_path: Path) -> None:
    """Python takes the one before the locator, torch the one that the locator names."""
    import torch

    mark = tmp_path / "ran"
    saved = io.BytesIO()
    torch.save(Touch(mark), saved)
    with zipfile.ZipFile(io.BytesIO(program)) as archive:
        good = {name: archive.read(name) for name in archive.namelist()}
    listing = next(name for name in good if name.endswith("model_weights_config.json"))
    document = json.loads(good[listing])
    payload = next(iter(document["config"].values()))
    payload["use_pickle"] = True
    weight = listing.replace("model_weights_config.json", payload["path_name"])
    bad = {**good, listing: json.dumps(document).encode(), weight: saved.getvalue()}
    first, seen = directory(good, 0)
    second, hidden = directory(bad, len(first))
    data = first + second
    ends = []
    for part in (hidden, seen):
        ends.append(len(data) + len(part))
        numbers = (len(good), len(good), len(part), len(data))
        data += part + struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, *numbers)
    data += struct.pack("<4sIQI", b"PK\6\7", 0, ends[0], 1)
    data += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with pytest.raises(ModelFileError, match="two directories"):
        load_program(data, "sliced.pt2")
    assert not mark.exists()


def test_torch_never_gets_the_file_itself(program: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    given: list[bytes] = []
    monkeypatch.setattr(torch.export, "load", lambda file: given.append(file.read()))
    load_program(program, "sliced.pt2")
    with zipfile.ZipFile(io.BytesIO(given[0])) as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {"archive"}
    assert given[0] != program


def test_compressed_overlapping_and_prepended_files_are_refused(program: bytes) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(program)) as before, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as after:
        for name in before.namelist():
            after.writestr(name, before.read(name))
    for hostile in (out.getvalue(), b"PK" + program, program + b"\0", program[:-30], b""):
        with pytest.raises(ModelFileError, match="is not a program"):
            load_program(hostile, "sliced.pt2")


CODE = "x'\"];__import__('os')\n"


def renamed(document: dict[str, Any]) -> None:
    graph = document["graph_module"]["graph"]
    graph["inputs"][0]["as_tensor"]["name"] = CODE


def renamed_node(document: dict[str, Any]) -> None:
    document["graph_module"]["graph"]["nodes"][0]["name"] = CODE


def renamed_weight(document: dict[str, Any]) -> None:
    specs = document["graph_module"]["signature"]["input_specs"]
    next(s for s in specs if "parameter" in s)["parameter"]["parameter_name"] = CODE


def renamed_argument(document: dict[str, Any]) -> None:
    document["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [CODE, "y"]


def counted_symbol(document: dict[str, Any]) -> None:
    document["range_constraints"]["u99999999999"] = {"min_val": 0, "max_val": None}


def constant_text(document: dict[str, Any]) -> None:
    document["graph_module"]["graph"]["inputs"].append({"as_string": CODE})


def repeated_text(document: dict[str, Any]) -> None:
    text = {"name": "", "arg": {"as_string": "a"}, "kind": 1}
    document["graph_module"]["graph"]["nodes"].append(
        {"target": "_operator.mul", "inputs": [text], "outputs": [], "metadata": {}}
    )


def own_class(document: dict[str, Any]) -> None:
    document["graph_module"]["graph"]["custom_obj_values"]["c"] = {"name": "c", "class_fqn": "a.B"}


def tree(kind: str, context: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        branch = {"type": kind, "context": context, "children_spec": []}
        document["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps([1, branch])

    return change


@pytest.mark.parametrize(
    "change",
    [
        renamed,
        renamed_node,
        renamed_weight,
        renamed_argument,
        counted_symbol,
        constant_text,
        repeated_text,
        own_class,
        tree("collections.defaultdict", {"default_factory_module": "antigravity"}),
        tree("builtins.dict", json.dumps([{"__enum__": True, "fqn": "antigravity:A", "name": "B"}])),
        tree("builtins.dict", json.dumps([CODE])),
    ],
)
def test_texts_that_become_source_or_imports_are_refused(
    program: bytes, change: Callable[[dict[str, Any]], None]
) -> None:
    with pytest.raises(ModelFileError, match="was not opened"):
        load_program(changed(program, in_graph(change)), "sliced.pt2")


def test_fields_of_another_kind_are_refused(program: bytes) -> None:
    def number(document: dict[str, Any]) -> None:
        document["range_constraints"] = {"s0": {"min_val": "1+1", "max_val": None}}

    def unknown(document: dict[str, Any]) -> None:
        document["graph_module"]["hook"] = "a"

    for change in (number, unknown):
        with pytest.raises(ModelFileError, match="is not a program"):
            load_program(changed(program, in_graph(change)), "sliced.pt2")


def test_keys_and_objects_among_the_sample_inputs_are_refused(program: bytes) -> None:
    import torch

    for kwargs in ({CODE: torch.zeros(1)}, {"a": torch.zeros(2).to_sparse()}, {"a": CODE}):
        saved = io.BytesIO()
        torch.save(((torch.zeros(2, 3, 20), torch.zeros(2, 5)), kwargs), saved)

        def samples(name: str, content: bytes, new: bytes = saved.getvalue()) -> bytes:
            return new if "sample_inputs" in name else content

        with pytest.raises(ModelFileError, match="sample inputs, which could run code"):
            load_program(changed(program, samples), "sliced.pt2")


def test_weights_without_bytes_are_refused(program: bytes) -> None:
    def empty(name: str, content: bytes) -> bytes:
        return b"" if name.endswith("weight_0") else content

    with pytest.raises(ModelFileError, match="weight_0 is empty"):
        load_program(changed(program, empty), "sliced.pt2")
