"""Small graphs of every kind that passes meet, built by hand, and requests to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.registry import PASSES
from edgewise_converter.requests import Requests, Tensors
from edgewise_protocol.manifest import TensorSpec
from onnx import TensorProto, helper, numpy_helper

DTYPES: dict[int, Any] = {TensorProto.FLOAT: "FP32", TensorProto.INT64: "INT64", TensorProto.INT32: "INT32"}
make = helper.make_node


@dataclass(frozen=True)
class Case:
    """A model, and requests that it was made for."""

    model: Any
    requests: Requests

    @property
    def artifact(self) -> Artifact:
        return Artifact(self.model.SerializeToString(), "onnx", "float32")

    @property
    def materials(self) -> Materials:
        graph = self.model.graph
        return Materials("case", tuple(map(spec, graph.input)), tuple(map(spec, graph.output)), self.requests)

    def through(self, name: str, **settings: Any) -> Artifact:
        return PASSES[name].load()(self.materials, self.artifact, PASSES[name].config(**settings))

    def chain(self, *steps: tuple[str, dict[str, Any]]) -> Artifact:
        artifact = self.artifact
        for name, settings in steps:
            artifact = PASSES[name].load()(self.materials, artifact, PASSES[name].config(**settings))
        return artifact

    def layers(self, name: str) -> tuple[str, ...]:
        found = PASSES[name].layers()
        assert found is not None
        return found(self.artifact)

    def error(self, data: bytes) -> float:
        """The root mean square of the answers' change, relative to the float answers', of the worst output."""
        wanted, found = answers(self.artifact.data, self.requests), answers(data, self.requests)
        assert wanted.keys() == found.keys()
        return max(
            float(np.sqrt(np.mean((wanted[n] - found[n]) ** 2)) / np.sqrt(np.mean(wanted[n] ** 2))) for n in wanted
        )


def spec(value: Any) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return TensorSpec(name=value.name, dtype=DTYPES[kind.elem_type], shape=shape)


def answers(data: bytes, requests: Requests) -> Tensors:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    fixed = any(isinstance(i.shape[0], int) for i in session.get_inputs() if i.shape)
    if requests.batched and not fixed:
        return dict(zip(names, session.run(names, requests.feeds), strict=True))
    rows = [session.run(names, feeds) for feeds in requests.each()]
    return {name: np.concatenate([row[i] for row in rows]) for i, name in enumerate(names)}


def floats(name: str, *shape: int, seed: int = 0, scale: float = 1.0) -> Any:
    array = np.random.default_rng([seed, *name.encode()]).normal(size=shape).astype(np.float32) * np.float32(scale)
    return numpy_helper.from_array(array, name)


def integers(name: str, *values: int) -> Any:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def value(name: str, shape: list[Any] | None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any], opset: int = 18) -> Any:
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def samples(*shape: int, seed: int = 5) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def conv_net() -> Case:
    """Convolution, depthwise convolution, a residual sum, pooling and a Gemm."""
    nodes = [
        make("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        make("Relu", ["c1"], ["r1"]),
        make("Conv", ["r1", "w2", "b2"], ["c2"], name="depthwise", pads=[1, 1, 1, 1], group=8),
        make("Clip", ["c2", "zero", "six"], ["r2"]),
        make("Conv", ["r2", "w3", "b3"], ["c3"], name="pointwise"),
        make("Add", ["c3", "r1"], ["sum"]),
        make("Relu", ["sum"], ["r3"]),
        make("MaxPool", ["r3"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        make("GlobalAveragePool", ["pooled"], ["mean"]),
        make("Flatten", ["mean"], ["flat"]),
        make("Gemm", ["flat", "w4", "b4"], ["y"], name="head", transB=1),
    ]
    constants = [
        floats("w1", 8, 2, 3, 3, scale=0.3),
        floats("b1", 8),
        floats("w2", 8, 1, 3, 3, scale=0.5),
        floats("b2", 8),
        floats("w3", 8, 8, 1, 1, scale=0.4),
        floats("b3", 8),
        floats("w4", 5, 8),
        floats("b4", 5),
        numpy_helper.from_array(np.float32(0), "zero"),
        numpy_helper.from_array(np.float32(6), "six"),
    ]
    model = model_of(nodes, [value("x", ["n", 2, 8, 8])], [value("y", ["n", 5])], constants)
    return Case(model, Requests({"x": samples(96, 2, 8, 8)}))


def products() -> Case:
    """Two inputs of different types and two outputs; Gemm both ways round, MatMul, and a layer without a name."""
    nodes = [
        make("Gather", ["table", "ids"], ["row"]),
        make("Add", ["row", "x"], ["h0"]),
        make("Gemm", ["h0", "w1", "b1"], ["h1"], name="gemm", alpha=1.0, transB=1),
        make("Tanh", ["h1"], ["h2"]),
        make("MatMul", ["h2", "w2"], ["h3"]),
        make("Gemm", ["h3", "w3", "b3"], ["y"], name="scaled", alpha=0.5, beta=2.0),
        make("Sigmoid", ["h3"], ["z"]),
    ]
    constants = [
        floats("table", 7, 16),
        floats("w1", 24, 16, scale=0.3),
        floats("b1", 24),
        floats("w2", 24, 32, scale=0.3),
        floats("w3", 32, 6, scale=0.3),
        floats("b3", 6),
    ]
    inputs = [value("x", ["n", 16]), value("ids", ["n"], TensorProto.INT64)]
    model = model_of(nodes, inputs, [value("y", ["n", 6]), value("z", ["n", 32])], constants)
    ids = np.arange(120, dtype=np.int64) % 7
    return Case(model, Requests({"x": samples(120, 16), "ids": ids}))


def branches() -> Case:
    """A convolution before an If whose branches hold layers of their own; whole requests, with a state."""

    def branch(name: str, seed: int) -> Any:
        nodes = [
            make("Constant", [], [f"{name}_w"], value=floats("", 16, 8, seed=seed, scale=0.4)),
            make("Flatten", ["c"], [f"{name}_flat"]),
            make("MatMul", [f"{name}_flat", f"{name}_w"], [f"{name}_m"], name=f"{name}_product"),
            make("Add", [f"{name}_m", "state"], [f"{name}_y"]),
        ]
        return helper.make_graph(nodes, name, [], [value(f"{name}_y", None)])

    nodes = [
        make("Conv", ["x", "w"], ["c"], name="shared"),
        make("Greater", ["rate", "limit"], ["is_fast"]),
        make("If", ["is_fast"], ["y"], name="choice", then_branch=branch("fast", 1), else_branch=branch("slow", 2)),
        make("Tanh", ["y"], ["next"]),
    ]
    constants = [floats("w", 2, 3, 1, scale=0.5), integers("limit", 100)]
    inputs = [value("x", [1, 3, 8]), value("state", [1, 8]), value("rate", [1], TensorProto.INT64)]
    model = model_of(nodes, inputs, [value("y", [1, 8]), value("next", [1, 8])], constants)
    feeds = {"x": samples(40, 1, 3, 8), "state": samples(40, 1, 8, seed=6), "rate": np.full((40, 1), 8, np.int64)}
    return Case(model, Requests(feeds, batched=False))


def recurrent() -> Case:
    """An LSTM with a bias, in two directions, between transpositions of a free sequence."""
    nodes = [
        make("LSTM", ["x", "w", "r", "b"], ["out", "last"], name="lstm", hidden_size=12, direction="bidirectional"),
        make("Transpose", ["last"], ["turned"], perm=[1, 0, 2]),
        make("Reshape", ["turned", "shape"], ["flat"]),
        make("Gemm", ["flat", "wg", "bg"], ["y"], name="head"),
    ]
    constants = [
        floats("w", 2, 48, 10, scale=0.3),
        floats("r", 2, 48, 12, scale=0.3),
        floats("b", 2, 96, scale=0.3),
        floats("wg", 24, 4, scale=0.5),
        floats("bg", 4),
        integers("shape", 1, 24),
    ]
    model = model_of(nodes, [value("x", ["steps", 1, 10])], [value("y", [1, 4])], constants)
    return Case(model, Requests({"x": samples(30, 9, 1, 10)}, batched=False))


def looped() -> Case:
    """A product in the body of a Loop."""
    body = helper.make_graph(
        [
            make("MatMul", ["h_in", "w"], ["m"], name="inside"),
            make("Tanh", ["m"], ["h_out"]),
            make("Identity", ["go_in"], ["go_out"]),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("go_in", [], TensorProto.BOOL), value("h_in", None)],
        [value("go_out", [], TensorProto.BOOL), value("h_out", None)],
    )
    nodes = [make("Loop", ["count", "", "x"], ["y"], name="loop", body=body)]
    constants = [floats("w", 16, 16, scale=0.4), numpy_helper.from_array(np.int64(3), "count")]
    model = model_of(nodes, [value("x", ["n", 16])], [value("y", ["n", 16])], constants)
    return Case(model, Requests({"x": samples(40, 16)}))


def wordy() -> Case:
    """A shape that is computed from the input's, a constant branch and a node that nothing reads."""

    def branch(name: str, kind: str) -> Any:
        return helper.make_graph([make(kind, ["scaled"], [name])], name, [], [value(name, None)])

    nodes = [
        make("Shape", ["x"], ["shape"]),
        make("Gather", ["shape", "first"], ["rows"]),
        make("Concat", ["rows", "rest"], ["wanted"], axis=0),
        make("Reshape", ["x", "wanted"], ["flat"]),
        make("Mul", ["two", "three"], ["six"]),
        make("Mul", ["flat", "six"], ["scaled"]),
        make("Exp", ["scaled"], ["unused"]),
        make("If", ["always"], ["y"], then_branch=branch("a", "Tanh"), else_branch=branch("b", "Exp")),
    ]
    constants = [
        integers("first", 0),
        integers("rest", 12),
        numpy_helper.from_array(np.float32([2]), "two"),
        numpy_helper.from_array(np.float32([3]), "three"),
        numpy_helper.from_array(np.array(True), "always"),
    ]
    model = model_of(nodes, [value("x", ["n", 3, 4])], [value("y", ["n", 12])], constants)
    return Case(model, Requests({"x": samples(32, 3, 4)}))


CASES: dict[str, Callable[[], Case]] = {
    "conv_net": conv_net,
    "products": products,
    "branches": branches,
    "recurrent": recurrent,
    "looped": looped,
    "wordy": wordy,
}
