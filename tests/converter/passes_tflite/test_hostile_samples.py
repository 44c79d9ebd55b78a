"""Danger: a file that behaves on zeros ends or hangs the converter on a real sample, or on a sample's way to it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from edgewise_converter.engines import named_apart
from edgewise_converter.engines.named_apart import NamedApart
from edgewise_converter.engines.named_tflite import NamedTflite
from edgewise_converter.errors import EngineError, ModelFileError
from edgewise_converter.importing.importer import Description, import_model
from edgewise_converter.sources.opening import open_model
from edgewise_converter.sources.reading import Wanted
from edgewise_converter.tflite_file.admission import admit
from edgewise_converter.tflite_file.reading import read
from edgewise_converter.tflite_file.structure import MAX_GRAPHS
from edgewise_converter.tflite_file.traps import trapping
from edgewise_profiles import catalogue


def endless(files: Any) -> bytes:
    """Gives (1, 4) back where nothing in it is above 0, and else never."""
    schema = files.schema
    net = files.Graph()
    x = net.input("x", (1, 4))
    loop = schema.WhileOptionsT(condSubgraphIndex=1, bodySubgraphIndex=2)
    y = net.op("WHILE", [x], (1, 4), options=loop, label="y")
    axes, zero = net.constant(np.array([0, 1], np.int32)), net.constant(np.zeros(1, np.float32))
    codes, main = net.model.operatorCodes, net.graph
    for inside in (True, False):
        net.graph = schema.SubGraphT(tensors=[], inputs=[], outputs=[], operators=[], name=b"inner")
        net.model.subgraphs.append(net.graph)
        v = net.tensor("v", (1, 4))
        net.graph.inputs = [v]
        for constant in (axes, zero):
            net.graph.tensors.append(main.tensors[constant])
        if inside:
            most = net.op("REDUCE_MAX", [v, 1], (), options=schema.ReducerOptionsT(keepDims=False))
            net.graph.outputs = [net.op("GREATER", [most, 2], (1,), options=schema.GreaterOptionsT(), kind=6)]
        else:
            net.graph.outputs = [net.op("ADD", [v, 2], (1, 4), options=schema.AddOptionsT())]
    assert len(codes) == 4
    net.graph = main
    return bytes(net.finish(y))


def remainder(files: Any, divisor: np.ndarray[Any, Any] | None) -> bytes:
    """The least int32 by `divisor`, or by the input."""
    net = files.Graph()
    x = net.input("x", (1, 4), 2)
    least = net.constant(np.full((1, 4), -(2**31), np.int32))
    by = x if divisor is None else net.constant(divisor)
    options = files.schema.FloorModOptionsT()
    return bytes(net.finish(net.op("FLOOR_MOD", [least, by], (1, 4), options=options, kind=2, label="y")))


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def converted(path: Path, samples: Path) -> None:
    open_model(str(path), Wanted(heldout=samples))


def published(path: Path, samples: Path) -> None:
    description = Description(model="own", version=1)
    import_model(path, samples, [catalogue.load("x86-64")], path.parent / "out", description)


@pytest.mark.parametrize("take", [converted, published])
def test_a_loop_that_ends_on_zeros_alone_is_ended_on_the_samples(
    files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[[Path, Path], None]
) -> None:
    monkeypatch.setattr(named_apart, "ANSWER_S", 0.5)
    path = tmp_path / "endless.tflite"
    path.write_bytes(endless(files))
    with pytest.raises(EngineError, match=r"no answer to a sample after 0\.5 s: .* a loop without an end"):
        take(path, saved(tmp_path / "s.npz", x=np.ones((8, 4), np.float32)))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 traps")
def test_a_crash_on_a_sample_takes_the_child_alone(files: Any) -> None:
    data = remainder(files, None)
    integers = frozenset({"x"})
    with NamedApart(NamedTflite(data, integers), data, integers) as apart:
        assert apart.infer({"x": np.full((2, 4), 3, np.int32)})["y"].tolist() == [[1] * 4] * 2
        for _ in range(2):
            with pytest.raises(EngineError, match=r"crashes LiteRT on a sample .signal 8."):
                apart.infer({"x": np.full((1, 4), -1, np.int32)})


def test_answers_from_apart_are_those_from_within(files: Any, small: bytes) -> None:
    x = files.images(3)
    with NamedApart(NamedTflite(small), small) as apart:
        for name, array in NamedTflite(small).infer({"image": x}).items():
            np.testing.assert_array_equal(apart.infer({"image": x})[name], array)
        with pytest.raises(EngineError, match="fails on the model"):
            apart.call({"image": x[:, :2]})
        assert len(apart.infer({"image": x})) == 1, "an error is no end"


def test_a_stateful_file_begins_anew_apart_too(files: Any) -> None:
    data = files.counter()
    steps = np.array([[1, 10], [2, 20], [3, 30]], np.float32)
    with NamedApart(NamedTflite(data), data) as apart:
        for _ in range(2):
            np.testing.assert_array_equal(apart.infer({"step": steps})["sum"], np.cumsum(steps, axis=0))


@pytest.mark.parametrize("divisor", [None, np.array([[3, -1, 2, 1]], np.int32)])
def test_a_remainder_that_may_trap_is_refused(files: Any, divisor: Any) -> None:
    with pytest.raises(ModelFileError, match=r"m holds FLOOR_MOD \(operator 0, 'y'\) .*constant divisor"):
        admit(remainder(files, divisor), "m")


def test_a_remainder_by_another_constant_is_admitted(files: Any) -> None:
    admit(remainder(files, np.array([[3, 7, 2, 1]], np.int32)), "m")
    model = read(remainder(files, np.array([[3, 7, 2, 1]], np.int32)))
    model.subgraphs[0].inputs.append(model.subgraphs[0].operators[0].inputs[1])
    assert trapping(model) is not None, "a constant that the client may put another in the place of"


def many_graphs(files: Any, count: int, *, chained: bool) -> bytes:
    """Empty graphs, of which each runs the next, or none any other."""
    schema = files.schema
    net = files.Graph()
    net.model.operatorCodes = [schema.OperatorCodeT(deprecatedBuiltinCode=127, builtinCode=129)]
    net.model.subgraphs = []
    for i in range(count):
        graph = schema.SubGraphT(tensors=[], inputs=[], outputs=[], operators=[])
        if chained and i + 1 < count:
            call = schema.OperatorT(opcodeIndex=0, inputs=[], outputs=[])
            call.builtinOptionsType = files.schema.BuiltinOptions.CallOnceOptions
            call.builtinOptions = schema.CallOnceOptionsT(initSubgraphIndex=i + 1)
            graph.operators.append(call)
        net.model.subgraphs.append(graph)
    builder = flatbuffers.Builder(1024)
    builder.Finish(net.model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_many_graphs_take_no_time(files: Any) -> None:
    for count, chained in ((MAX_GRAPHS, True), (MAX_GRAPHS, False)):
        data = many_graphs(files, count, chained=chained)
        start = time.process_time()
        read(data)
        assert time.process_time() - start < 5
    with pytest.raises(ModelFileError, match=f"holds {MAX_GRAPHS + 1} graphs; {MAX_GRAPHS} are taken"):
        read(many_graphs(files, MAX_GRAPHS + 1, chained=False))
