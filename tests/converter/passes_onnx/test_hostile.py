"""Danger: an ONNX file from outside crashes or hangs the converter, takes its memory, or opens another file."""

from __future__ import annotations

import builtins
import resource
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from edgewise_converter.errors import ModelFileError
from edgewise_converter.importing.model_file import MAX_IR, MAX_OPSET, check_onnx, read_model
from edgewise_converter.importing.onnx_check import check_tensors
from edgewise_converter.importing.onnx_scan import _MESSAGES, MAX_DEPTH, MAX_NODES, scan
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from passes_onnx_graphs import CASES, floats, make, model_of, value

FILES = {name: build().model.SerializeToString() for name, build in CASES.items()}


def simple(*constants: Any, **changes: Any) -> Any:
    nodes = changes.pop("nodes", [make("Add", ["x", "w"], ["y"], name="sum")])
    inputs = changes.pop("inputs", [value("x", ["n", 3])])
    return model_of(nodes, inputs, [value("y", ["n", 3])], list(constants) or [floats("w", 3)], **changes)


def claiming(dims: list[int], data: bytes = b"\0" * 12, kind: int = TensorProto.FLOAT) -> Any:
    return TensorProto(name="w", dims=dims, data_type=kind, raw_data=data)


def external(place: str) -> Any:
    tensor = TensorProto(name="w", dims=[3], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=place)
    return tensor


def nested(depth: int) -> bytes:
    inner = helper.make_graph([make("Identity", ["x"], ["y"])], "g", [], [value("y", None)])
    for _ in range(depth):
        node = make("If", ["c"], ["y"], then_branch=inner, else_branch=inner.__class__(name="e"))
        inner = helper.make_graph([node], "g", [], [value("y", None)])
    inner.input.extend([value("x", ["n", 3]), value("c", [], TensorProto.BOOL)])
    return bytes(
        helper.make_model(inner, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    )


@pytest.mark.parametrize("name", sorted(FILES))
def test_sound_files_are_let_in(name: str) -> None:
    check_onnx(FILES[name], name)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            simple(claiming([2**29])),
            r"constant 'w' claims a shape of 536870912 elements but holds 12 of 2147483648 bytes",
        ),
        (simple(claiming([2**40, 2**40])), "claims a shape of"),
        (simple(claiming([-3])), "negative"),
        (simple(claiming([1] * 40)), "40 dimensions"),
        (simple(claiming([4])), "holds 12 of 16 bytes"),
        (simple(claiming([3], kind=99)), "of a type that devices do not know"),
        (
            simple(TensorProto(name="w", dims=[3], data_type=TensorProto.FLOAT, float_data=[1.0])),
            "holds 1 of 3 entries",
        ),
        (simple(external("w.bin")), r"in another file; a bundle holds one file: .*save_as_external_data=False"),
        (
            simple(external("../../etc/passwd")),
            r"in another file outside of its folder \('\.\./\.\./etc/passwd'\), which was not",
        ),
        (simple(external("/etc/passwd")), "outside of its folder"),
        (simple(external("C:\\secret")), "outside of its folder"),
        (
            simple(nodes=[make("Add", ["x", "w"], ["y"], name="sum"), make("Foo", ["x"], ["z"], name="odd")]),
            r"node 'odd' uses the operator 'Foo', which the ONNX standard does not have in its operator set 18: export",
        ),
        (
            simple(nodes=[make("Add", ["x", "w"], ["y"]), make("Bar", ["x"], ["z"], name="odd", domain="my.ops")]),
            r"node 'odd' uses 'Bar' of 'my\.ops', an operator of no engine on a device: export the model without it",
        ),
        (
            simple(nodes=[make("Add", ["x", "w"], ["y"]), make("Gelu", ["x"], ["z"], name="new")]),
            "node 'new' uses the operator 'Gelu'.*operator set 18",
        ),
        (simple(inputs=[value("x", [2**31, 2**31])]), "absurd shape"),
        (
            simple(
                floats("w", 3),
                helper.make_tensor("huge", TensorProto.INT64, [2], [2**20, 2**20]),
                nodes=[make("ConstantOfShape", ["huge"], ["z"], name="bomb"), make("Add", ["x", "w"], ["y"])],
            ),
            "node 'bomb' makes a tensor of the absurd shape",
        ),
        (
            simple(opset=MAX_OPSET + 1),
            rf"operator set {MAX_OPSET + 1}; devices read up to {MAX_OPSET}.*edgewise convert",
        ),
    ],
)
def test_what_harms_or_cannot_run_is_refused_with_its_place(model: Any, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        check_onnx(model.SerializeToString(), "bad.onnx")


def test_what_passes_can_mend_is_let_in_to_be_converted() -> None:
    newer = simple(opset=MAX_OPSET + 1)
    check_onnx(newer.SerializeToString(), "newer.onnx", converted=True)
    newer.ir_version = MAX_IR + 1
    check_onnx(newer.SerializeToString(), "newer.onnx", converted=True)
    with pytest.raises(ModelFileError, match="the converter reads up to"):
        check_onnx(simple(opset=999).SerializeToString(), "newest.onnx", converted=True)


def test_weights_in_a_branch_a_function_and_training_information_are_looked_at() -> None:
    branch = helper.make_graph([make("Add", ["x", "w"], ["z"])], "b", [], [value("z", None)], [external("a.bin")])
    node = make("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    inputs = [value("x", ["n", 3]), value("c", [], TensorProto.BOOL)]
    with pytest.raises(ModelFileError, match="another file"):
        check_onnx(simple(nodes=[node], inputs=inputs).SerializeToString(), "b.onnx")
    trained = simple()
    trained.training_info.add().algorithm.initializer.append(external("/etc/passwd"))
    with pytest.raises(ModelFileError, match="another file"):
        check_onnx(trained.SerializeToString(), "t.onnx")


def places(descriptor: Any, found: str, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Ways through fields to messages of a kind, none through the same kind of message twice."""
    ways: list[tuple[Any, ...]] = []
    for field in descriptor.fields:
        if field.message_type is None or any(field.message_type == f.message_type for f in path):
            continue
        way = (*path, field)
        ways += [way] if field.message_type.name == found else []
        ways += places(field.message_type, found, way)
    return ways


PLACES = places(onnx.ModelProto.DESCRIPTOR, "TensorProto")


def test_weights_are_looked_at_wherever_the_schema_allows_them() -> None:
    """A function's attribute has a default: an engine reads the file that it names, from the current folder."""
    names = {".".join(field.name for field in way) for way in PLACES}
    assert {"functions.attribute_proto.t", "functions.node.attribute.g.initializer", "graph.initializer"} <= names
    for way in PLACES:
        model = simple()
        message = model
        for field in way:
            within = getattr(message, field.name)
            message = within if hasattr(within, "DESCRIPTOR") else within.add()
        message.CopyFrom(external("secret.bin"))
        with pytest.raises(ModelFileError, match="'w' in another file"):
            check_tensors(model, "m.onnx")


def test_the_scan_follows_every_message_that_the_schema_has() -> None:
    kinds = {"ModelProto": "model"}
    waiting = [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        descriptor = waiting.pop()
        inner = _MESSAGES[kinds[descriptor.name]]
        for field in descriptor.fields:
            if field.message_type is not None:
                assert field.number in inner, f"{descriptor.name}.{field.name}"
                if field.message_type.name not in kinds:
                    kinds[field.message_type.name] = inner[field.number]
                    waiting.append(field.message_type)


def laughs(levels: int, *, circle: bool = False) -> Any:
    """A function that runs another one twice, that runs another one twice, ..."""
    model = simple(nodes=[make("F0", ["x"], ["y"], domain="own")])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model.opset_import.append(opsets[1])
    for level in range(levels):
        last = level == levels - 1
        inner, domain = ("Identity", "") if last and not circle else (f"F{(level + 1) % levels}", "own")
        body = [make(inner, ["a"], ["t"], domain=domain), make(inner, ["t"], ["b"], domain=domain)]
        model.functions.append(helper.make_function("own", f"F{level}", ["a"], ["b"], body, opsets))
    return model


def test_functions_that_stand_for_a_multitude_of_nodes_are_refused() -> None:
    check_onnx(laughs(10).SerializeToString(), "few.onnx")
    for levels in (16, 64):
        with pytest.raises(ModelFileError, match="more than 50000 nodes"):
            check_onnx(laughs(levels).SerializeToString(), "many.onnx")
    for levels in (1, 3):
        with pytest.raises(ModelFileError, match="in a circle"):
            check_onnx(laughs(levels, circle=True).SerializeToString(), "circle.onnx")


def test_a_file_that_engines_would_take_for_another_container_is_refused() -> None:
    posing = simple()
    posing.producer_name, posing.ir_version = "ORTM", 8
    data = posing.SerializeToString()
    assert data[4:8] == b"ORTM"
    with pytest.raises(ModelFileError, match="onnxruntime's own container"):
        check_onnx(data, "both.onnx")
    posing.ClearField("producer_name")
    behind = posing.SerializeToString() + b"\x12\x04ORTM"  # in front when it is written again
    with pytest.raises(ModelFileError, match="onnxruntime's own container"):
        check_onnx(behind, "both.onnx")


def test_nothing_is_opened_for_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(12))
    path = tmp_path / "models" / "m.onnx"
    path.parent.mkdir()
    path.write_bytes(simple(external("../secret.bin")).SerializeToString())
    opened: list[str] = []
    real = builtins.open

    def watch(file: Any, *more: Any, **others: Any) -> Any:
        opened.append(str(file))
        return real(file, *more, **others)

    monkeypatch.setattr(builtins, "open", watch)
    with pytest.raises(ModelFileError, match="not opened"):
        read_model(path)
    assert not any("secret" in name for name in opened)


def test_nesting_is_bounded() -> None:
    check_onnx(nested(MAX_DEPTH - 1), "deep.onnx")
    for depth in (MAX_DEPTH + 1, 29):
        with pytest.raises(ModelFileError, match=f"nests graphs deeper than {MAX_DEPTH}"):
            check_onnx(nested(depth), "deeper.onnx")
    bomb = b"\x0a\x00"
    for _ in range(3000):
        bomb = b"\x2a" + _size(len(bomb) + 1 + len(_size(len(bomb)))) + b"\x32" + _size(len(bomb)) + bomb
        bomb = b"\x0a" + _size(len(bomb)) + bomb
    with pytest.raises(ModelFileError, match=r"deeper|not an ONNX"):
        check_onnx(b"\x3a" + _size(len(bomb)) + bomb, "bomb.onnx")


def _size(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def test_huge_counts_are_refused_before_they_take_memory() -> None:
    nodes = b"\x0a\x00" * (MAX_NODES + 1)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ModelFileError, match="more than"):
        check_onnx(b"\x3a" + _size(len(nodes)) + nodes, "many.onnx")
    assert time.monotonic() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@given(st.sampled_from(sorted(FILES)), st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_a_truncated_file_is_refused_or_still_sound(name: str, share: float) -> None:
    data = FILES[name][: int(len(FILES[name]) * share)]
    _never_more_than_a_refusal(data)


@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6)), min_size=1, max_size=5),
)
@settings(max_examples=200, deadline=None)
@example("branches", [(0.5, b"\xff\xff\xff\xff\xff\x7f")])
def test_mutated_bytes_never_do_more_than_be_refused(name: str, changes: list[tuple[float, bytes]]) -> None:
    data = bytearray(FILES[name])
    for share, new in changes:
        at = int(len(data) * share)
        data[at : at + len(new)] = new
    _never_more_than_a_refusal(bytes(data))


@given(st.binary(max_size=400))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ModelFileError):
        check_onnx(data, "noise.onnx")


def _never_more_than_a_refusal(data: bytes) -> None:
    for converted in (False, True):
        try:
            check_onnx(data, "mutated.onnx", converted=converted)
        except ModelFileError as error:
            assert "mutated.onnx" in str(error) and len(str(error)) < 900


def test_the_scan_agrees_with_protobuf_on_what_is_cut_short() -> None:
    data = FILES["products"]
    scan(data, "whole.onnx")
    for end in range(1, len(data), 97):
        try:
            onnx.load_model_from_string(data[:end])
        except Exception:
            with pytest.raises(ModelFileError):
                check_onnx(data[:end], "cut.onnx")
