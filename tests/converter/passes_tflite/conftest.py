"""Small TFLite files, built by the schema's own classes: no exporter, no engine."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.requests import Requests
from numpy.typing import NDArray

TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int32): 2, np.dtype(np.int8): 9}
OPTIONS = schema.BuiltinOptions


class Graph:
    """One graph in the making; each method adds an operator and gives the tensor that it makes."""

    def __init__(self) -> None:
        self.model = schema.ModelT(version=3, buffers=[schema.BufferT()], operatorCodes=[], signatureDefs=None)
        self.graph = schema.SubGraphT(tensors=[], inputs=[], outputs=[], operators=[], name=b"main")
        self.model.subgraphs = [self.graph]
        self.model.description = b"made by hand"

    def tensor(self, name: str, shape: tuple[int, ...], kind: int = 0, **more: Any) -> int:
        found = schema.TensorT(name=name.encode(), shape=list(shape), type=kind, buffer=0, **more)
        self.graph.tensors.append(found)
        return len(self.graph.tensors) - 1

    def input(self, name: str, shape: tuple[int, ...], kind: int = 0) -> int:
        signature = [-1, *shape[1:]]
        self.graph.inputs.append(self.tensor(name, shape, kind, shapeSignature=signature))
        return self.graph.inputs[-1]

    def constant(self, values: NDArray[Any], name: str = "constant") -> int:
        index = self.tensor(name, values.shape, TYPES[values.dtype])
        self.graph.tensors[index].buffer = len(self.model.buffers)
        self.model.buffers.append(schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
        return index

    def op(
        self,
        name: str,
        inputs: list[int],
        shape: tuple[int, ...] | None,
        *,
        options: Any = None,
        version: int = 1,
        label: str | None = None,
        kind: int = 0,
        custom: str | None = None,
    ) -> int:
        number = schema.BuiltinOperator.CUSTOM if custom else getattr(schema.BuiltinOperator, name)
        code = schema.OperatorCodeT(
            deprecatedBuiltinCode=min(number, 127),
            builtinCode=number,
            version=version,
            customCode=custom.encode() if custom else None,
        )
        self.model.operatorCodes.append(code)
        position = len(self.graph.operators)
        made = [] if shape is None else [self.tensor(label or f"layer{position}/{name}", shape, kind)]
        operator = schema.OperatorT(opcodeIndex=len(self.model.operatorCodes) - 1, inputs=inputs, outputs=made)
        if options is not None:
            operator.builtinOptionsType = getattr(OPTIONS, type(options).__name__.removesuffix("T"))
            operator.builtinOptions = options
        self.graph.operators.append(operator)
        return made[0] if made else -1

    def conv(self, x: int, weights: NDArray[Any], bias: NDArray[Any], shape: tuple[int, ...], act: int = 0) -> int:
        options = schema.Conv2DOptionsT(padding=0, strideW=1, strideH=1, fusedActivationFunction=act)
        options.dilationWFactor = options.dilationHFactor = 1
        return self.op("CONV_2D", [x, self.constant(weights), self.constant(bias)], shape, options=options)

    def depthwise(self, x: int, weights: NDArray[Any], bias: NDArray[Any], shape: tuple[int, ...], act: int) -> int:
        options = schema.DepthwiseConv2DOptionsT(padding=0, strideW=1, strideH=1, depthMultiplier=1)
        options.dilationWFactor = options.dilationHFactor = 1
        options.fusedActivationFunction = act
        return self.op("DEPTHWISE_CONV_2D", [x, self.constant(weights), self.constant(bias)], shape, options=options)

    def dense(self, x: int, weights: NDArray[Any], bias: NDArray[Any], shape: tuple[int, ...]) -> int:
        options = schema.FullyConnectedOptionsT(fusedActivationFunction=0)
        return self.op("FULLY_CONNECTED", [x, self.constant(weights), self.constant(bias)], shape, options=options)

    def finish(self, *outputs: int) -> bytes:
        self.graph.outputs = list(outputs)
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def classifier(*, half: bool = False, lone_relu: bool = True, seed: int = 3) -> bytes:
    """Image (1, 8, 8, 2) to 5 classes: conv, relu, depthwise, add, conv, reshape, dense, softmax; no signature."""
    g = np.random.default_rng(seed)

    def draw(*shape: int) -> NDArray[np.float32]:
        return g.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)

    net = Graph()
    x = net.input("image", (1, 8, 8, 2))
    if half:
        narrow = net.constant(draw(16, 3, 3, 2).astype(np.float16), "half")
        weights = net.op("DEQUANTIZE", [narrow], (16, 3, 3, 2), version=3, label="widened")
        options = schema.Conv2DOptionsT(padding=0, strideW=1, strideH=1, fusedActivationFunction=0)
        options.dilationWFactor = options.dilationHFactor = 1
        y = net.op("CONV_2D", [x, weights, net.constant(draw(16))], (1, 8, 8, 16), options=options)
    else:
        y = net.conv(x, draw(16, 3, 3, 2), draw(16), (1, 8, 8, 16), 0 if lone_relu else 1)
    if lone_relu:
        y = net.op("RELU", [y], (1, 8, 8, 16), label="first/relu")
    z = net.depthwise(y, draw(1, 3, 3, 16), draw(16), (1, 8, 8, 16), 3)
    y = net.op("ADD", [y, z], (1, 8, 8, 16), options=schema.AddOptionsT())
    y = net.conv(y, draw(24, 3, 3, 16), draw(24), (1, 8, 8, 24), 1)
    y = net.op(
        "MAX_POOL_2D",
        [y],
        (1, 4, 4, 24),
        options=schema.Pool2DOptionsT(padding=1, strideW=2, strideH=2, filterWidth=2, filterHeight=2),
    )
    shape = net.constant(np.array([-1, 384], np.int32), "shape")
    y = net.op("RESHAPE", [y, shape], (1, 384), options=schema.ReshapeOptionsT(newShape=[-1, 384]))
    last = 8 * draw(5, 384)
    y = net.dense(y, last - last.mean(axis=1, keepdims=True), np.zeros(5, np.float32), (1, 5))
    y = net.op("SOFTMAX", [y], (1, 5), options=schema.SoftmaxOptionsT(beta=1.0), label="scores")
    return net.finish(y)


def two_inputs() -> bytes:
    """Token ids (1, 6) int32 and features (1, 4) float to 3 numbers, both named `x`, and none of the layers named."""
    g = np.random.default_rng(5)
    net = Graph()
    ids, features = net.input("x", (1, 6), 2), net.input("x", (1, 4))
    table = net.constant(g.normal(size=(20, 8)).astype(np.float32))
    rows = net.op("GATHER", [table, ids], (1, 6, 8), options=schema.GatherOptionsT(axis=0, batchDims=0), label="r")
    axes = net.constant(np.array([1], np.int32))
    mean = net.op("MEAN", [rows, axes], (1, 8), options=schema.ReducerOptionsT(keepDims=False), label="r")
    both = net.op("CONCATENATION", [mean, features], (1, 12), options=schema.ConcatenationOptionsT(axis=1), label="r")
    y = net.dense(both, g.normal(size=(3, 12)).astype(np.float32), np.zeros(3, np.float32), (1, 3))
    return net.finish(y)


def counter() -> bytes:
    """Adds what it is given, (1, 2) float, to a variable, and answers the sum."""
    net = Graph()
    x = net.input("step", (1, 2))
    handle = net.op("VAR_HANDLE", [], (), options=schema.VarHandleOptionsT(sharedName=b"sum"), kind=13, label="handle")
    zero = net.constant(np.zeros((1, 2), np.float32), "zero")
    init = schema.SubGraphT(tensors=[], inputs=[], outputs=[], operators=[], name=b"init")
    inner = schema.TensorT(name=b"inner", shape=[], type=13, buffer=0)
    start = schema.TensorT(name=b"start", shape=[1, 2], type=0, buffer=net.graph.tensors[zero].buffer)
    init.tensors = [inner, start]
    codes = net.model.operatorCodes
    codes.append(schema.OperatorCodeT(deprecatedBuiltinCode=127, builtinCode=schema.BuiltinOperator.ASSIGN_VARIABLE))
    make = schema.OperatorT(opcodeIndex=0, inputs=[], outputs=[0])
    make.builtinOptionsType, make.builtinOptions = OPTIONS.VarHandleOptions, schema.VarHandleOptionsT(sharedName=b"sum")
    put = schema.OperatorT(opcodeIndex=len(codes) - 1, inputs=[0, 1], outputs=[])
    put.builtinOptionsType, put.builtinOptions = OPTIONS.AssignVariableOptions, schema.AssignVariableOptionsT()
    init.operators = [make, put]
    net.model.subgraphs.append(init)
    net.op("CALL_ONCE", [], None, options=schema.CallOnceOptionsT(initSubgraphIndex=1))
    before = net.op("READ_VARIABLE", [handle], (1, 2), options=schema.ReadVariableOptionsT(), label="before")
    after = net.op("ADD", [before, x], (1, 2), options=schema.AddOptionsT(), label="sum")
    net.op("ASSIGN_VARIABLE", [handle, after], None, options=schema.AssignVariableOptionsT())
    return net.finish(after)


def materials(data: bytes, feeds: dict[str, NDArray[Any]], name: str = "small") -> Materials:
    """What a pass draws on, for a file."""
    from edgewise_converter.engines.named_tflite import NamedTflite

    loaded = NamedTflite(data)
    return Materials(name, loaded.inputs, loaded.outputs, Requests(feeds, loaded.batch is not None))


def images(count: int, seed: int = 1) -> NDArray[np.float32]:
    """Images (count, 8, 8, 2) of a colour and a direction of their own, so that they fall into several classes."""
    g = np.random.default_rng(seed)
    slope = np.linspace(-1, 1, 8)
    across, down = g.normal(0, 1, (2, count, 1, 1, 2))
    x = g.normal(0, 1, (count, 1, 1, 2)) + across * slope[None, None, :, None] + down * slope[None, :, None, None]
    return (x + g.normal(0, 0.3, (count, 8, 8, 2))).astype(np.float32)


def apply(name: str, data: bytes, feeds: dict[str, NDArray[Any]] | None = None, **config: Any) -> bytes:
    """A pass on a file."""
    from edgewise_converter.passes.registry import PASSES

    entry = PASSES[name]
    given = {"image": images(64)} if feeds is None else feeds
    made = entry.load()(materials(data, given), Artifact(data, "tflite", "float32"), entry.config(**config))
    assert made.format == "tflite"
    assert entry.precision in (None, made.precision)
    return bytes(made.data)


@pytest.fixture(scope="session")
def small() -> bytes:
    return classifier()


class Files:
    """The makers above, for tests that cannot import this module."""

    Graph = Graph
    schema = schema
    classifier = staticmethod(classifier)
    two_inputs = staticmethod(two_inputs)
    counter = staticmethod(counter)
    images = staticmethod(images)
    apply = staticmethod(apply)
    materials = staticmethod(materials)


@pytest.fixture(scope="session")
def files() -> type[Files]:
    return Files
