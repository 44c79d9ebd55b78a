"""Danger: an outside TFLite file that is cut short or forged ends the process that reads it, or is half believed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from edgewise_converter.errors import ModelFileError
from edgewise_converter.tflite_file import verify as verifying
from edgewise_converter.tflite_file.admission import admit
from edgewise_converter.tflite_file.forms import precision_of
from edgewise_converter.tflite_file.operators import foreign, is_stateful, operators
from edgewise_converter.tflite_file.probe import probe
from edgewise_converter.tflite_file.reading import read
from edgewise_converter.tflite_file.writing import write
from hypothesis import example, given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("cut", [0, 3, 7, 8, 12, 40, 200, 1000, -400, -1])
def test_a_cut_file_is_refused(small: bytes, cut: int) -> None:
    with pytest.raises(ModelFileError, match=r"not a TFLite file|damaged or cut short"):
        read(small[:cut], "cut.tflite")


def test_the_message_names_the_file_and_what_to_do(small: bytes) -> None:
    with pytest.raises(ModelFileError, match=r"^cut\.tflite is damaged or cut short: .*; get the file again, or"):
        read(small[:300], "cut.tflite")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_forged_byte_gets_past_the_reader_but_as_a_model_or_a_refusal(small: bytes, data: st.DataObject) -> None:
    forged = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(forged) - 4))
        what = data.draw(st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, len(forged)]))
        forged[where : where + 4] = struct.pack("<I", what)
    try:
        model = read(bytes(forged))
    except ModelFileError:
        return
    list(operators(model))
    precision_of(model)
    write(model)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
@example(b"\xff\xff\xff\xff" + b"TFL3" + b"\xff" * 60)
@example(b"\x08\x00\x00\x00" + b"TFL3" + b"\x00" * 60)
def test_noise_behind_the_identifier_is_refused(noise: bytes) -> None:
    with pytest.raises(ModelFileError):
        read(noise[:4] + b"TFL3" + noise[4:])


def test_an_offset_that_is_reached_many_times_is_bounded() -> None:
    """A vector of tables whose entries all lead to one table, whose own vector does the same."""
    entries = 600
    out = bytearray(b"\0\0\0\0TFL3")

    def table(slots: list[int | None]) -> int:
        place = len(out)
        out.extend(struct.pack(f"<HH{len(slots)}H", 4 + 2 * len(slots), 4 + 4 * len(slots),
                               *(0 if s is None else 4 + 4 * i for i, s in enumerate(slots))))  # fmt: skip
        out.extend(b"\0" * (-len(out) % 4))
        start = len(out)
        out.extend(struct.pack("<i", start - place))
        out.extend(b"\0" * 4 * len(slots))
        for i, target in enumerate(slots):
            if target:
                wait.append((start + 4 + 4 * i, target))
        return start

    wait: list[tuple[int, int]] = []
    marks: dict[int, int] = {}
    root = table([None, None, 1])
    marks[1] = len(out)
    graphs = len(out)
    out.extend(struct.pack("<I", entries) + b"\0" * 4 * entries)
    graph = table([2])
    marks[2] = len(out)
    out.extend(struct.pack("<I", entries) + b"\0" * 4 * entries)
    tensor = table([None])
    for i in range(entries):
        for start, target in ((graphs, graph), (marks[2], tensor)):
            at = start + 4 + 4 * i
            out[at : at + 4] = struct.pack("<I", target - at)
    for at, mark in wait:
        out[at : at + 4] = struct.pack("<I", marks[mark] - at)
    out[0:4] = struct.pack("<I", root)
    with pytest.raises(ModelFileError, match="more than 250000 tables"):
        verifying.verify(bytes(out), "bomb")


def change(files: Any, edit: Callable[[Any, Any], None]) -> bytes:
    """The small classifier with something that no converter writes."""
    import flatbuffers

    model = read(files.classifier())
    edit(model, model.subgraphs[0])
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m, g: setattr(m, "version", 4), "version 4"),
        (lambda m, g: setattr(g.operators[0], "opcodeIndex", 99), "operator 0: its code is number 99"),
        (lambda m, g: setattr(g.operators[0], "inputs", [4000, 1, 2]), "an input of it is number 4000"),
        (lambda m, g: setattr(g.operators[0], "inputs", [g.outputs[0], 1, 2]), "which nothing before it makes"),
        (lambda m, g: setattr(g.tensors[1], "buffer", 77), r"tensor 1 \(constant\): its buffer is number 77"),
        (lambda m, g: setattr(g.tensors[1], "shape", [1 << 20, 1 << 20, 64]), "claims"),
        (lambda m, g: setattr(g.tensors[1], "shape", [16, 3, 3, 3]), "needs 1728 bytes, and 1152 are there"),
        (lambda m, g: setattr(g, "outputs", [-5]), "an input or output of the graph is number -5"),
        (lambda m, g: setattr(m, "subgraphs", []), "no graph"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(files: Any, edit: Any, words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        read(change(files, edit), "odd.tflite")


def test_graphs_that_run_each_other_in_a_circle_are_refused(files: Any) -> None:
    model = read(files.counter())
    model.subgraphs[1].operators.append(model.subgraphs[0].operators[1])
    with pytest.raises(ModelFileError, match="circle"):
        read(write(model, names=True))


def test_scales_that_do_not_fit_are_refused(files: Any) -> None:
    for scales, words in (([0.1] * 3, "3 scales"), ([float("nan")], "NaN"), ([-1.0], "negative")):

        def edit(model: Any, graph: Any, scales: list[float] = scales) -> None:
            quantization = files.schema.QuantizationParametersT(scale=scales, zeroPoint=[0] * len(scales))
            graph.tensors[1].quantization = quantization

        with pytest.raises(ModelFileError, match=words):
            read(change(files, edit))


def test_writing_what_was_read_is_stable_and_smaller(small: bytes) -> None:
    once = write(read(small))
    assert write(read(once)) == once
    assert len(once) < len(small)
    assert b"made by hand" not in once
    assert b"layer" not in once


def test_constants_begin_at_multiples_of_sixteen(small: bytes) -> None:
    data = write(read(small))
    model = read(data)
    base = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    places = [b.data.__array_interface__["data"][0] - base for b in model.buffers if b.data is not None]
    long = [p for p, b in zip(places, model.buffers[1:], strict=True) if len(b.data) >= 16]
    assert len(long) >= 6
    assert {place % 16 for place in long} == {0}


def test_operators_are_listed_with_name_version_and_place(small: bytes) -> None:
    found = list(operators(read(small)))
    assert [o.name for o in found[:3]] == ["CONV_2D", "RELU", "DEPTHWISE_CONV_2D"]
    assert found[1].place == "RELU (operator 1, 'first/relu')"
    assert all(o.builtin for o in found)


def test_custom_and_tensorflow_operators_are_refused_by_name_and_place(files: Any) -> None:
    for custom, words in (("MyOwn", "a custom operator"), ("FlexErf", "TensorFlow's own")):
        net = files.Graph()
        x = net.input("x", (1, 4))
        data = net.finish(net.op("", [x], (1, 4), custom=custom, label="odd"))
        (operator,) = foreign(read(data))
        assert operator.flex == custom.startswith("Flex")
        with pytest.raises(ModelFileError, match=rf"m\.tflite holds {custom} \(operator 0, 'odd'\), .*{words}"):
            admit(data, "m.tflite")


def test_a_stateful_file_is_told(files: Any, small: bytes) -> None:
    assert is_stateful(read(files.counter()))
    assert not is_stateful(read(small))


def test_a_sound_file_is_admitted(small: bytes) -> None:
    admit(small, "small.tflite")


def test_what_only_the_engine_can_tell_is_found_out_in_a_child(files: Any) -> None:
    """Weights of another depth than the image: every index holds, and the kernel refuses."""
    net = files.Graph()
    x = net.input("x", (1, 8, 8, 3))
    y = net.conv(x, np.ones((4, 3, 3, 2), np.float32), np.zeros(4, np.float32), (1, 8, 8, 4))
    data = net.finish(y)
    read(data)
    with pytest.raises(ModelFileError, match=r"LiteRT cannot run odd\.tflite"):
        admit(data, "odd.tflite")


def test_a_child_that_crashes_or_hangs_is_a_refusal(small: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise_converter.tflite_file import probe as probing

    monkeypatch.setattr(probing, "_CHILD", "import os; os.abort()")
    with pytest.raises(ModelFileError, match=r"crashes LiteRT .signal 6."):
        probe(small, "m")
    monkeypatch.setattr(probing, "_CHILD", "import sys, signal; sys.stdin.buffer.read(); signal.pause()")
    with pytest.raises(ModelFileError, match="within 1 s"):
        probe(small, "m", seconds=1)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_admitted_never_crashes_the_engine_here(small: bytes, data: st.DataObject) -> None:
    from edgewise_converter.engines.named_tflite import NamedTflite
    from edgewise_converter.errors import EngineError

    forged = bytearray(small)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(forged) - 1))
        forged[where] = data.draw(st.integers(0, 255))
    try:
        admit(bytes(forged), "m")
        NamedTflite(bytes(forged))
    except (ModelFileError, EngineError):
        return
