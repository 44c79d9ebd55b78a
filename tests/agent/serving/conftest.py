"""A table with small real models, and an HTTP server in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgewise_agent.serving.exchange import Limits
from edgewise_agent.serving.http import HttpServer
from edgewise_agent.serving.table import ModelTable
from edgewise_protocol.manifest import FileEntry, Golden, Manifest, Requirements, TensorSpec
from onnx import TensorProto, helper

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
}


def serving_manifest(model: str, version: int, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Manifest:
    return Manifest(
        spec_version="1.0",
        kind="inference",
        model=model,
        version=version,
        profile="x86-64",
        requires=Requirements(engine="onnxruntime"),
        files=(FileEntry(name="model.onnx", sha256="0" * 64, size=1),),
        task="classification",
        labels=("cat", "dog", "hen"),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        model_file="model.onnx",
        golden=Golden(file="golden.safetensors", samples=1, atol=0, rtol=0),
    )


def save_graph(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


class Models:
    """Makes models and puts them in a table."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = ModelTable(capacity=8)

    def activate_scale(self, version: int, factor: float, model: str = "scale") -> None:
        """y (n, 3) = x (n, 3) * factor."""
        path = save_graph(
            self.folder / f"{model}-{version}.onnx",
            [helper.make_node("Mul", ["x", "f"], ["y"])],
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
            [onnx.numpy_helper.from_array(np.array(factor, np.float32), "f")],
        )
        x = TensorSpec(name="x", dtype="FP32", shape=(-1, 3))
        y = TensorSpec(name="y", dtype="FP32", shape=(-1, 3))
        self.table.activate(model, version, f"{version:064x}", path, serving_manifest(model, version, [x], [y]), None)

    def activate_identity(self, dtype: Any) -> str:
        """b (n, 2) = a (n, 2) of one type, and a second pair beside it in FP32."""
        name = f"identity-{dtype}"
        path = save_graph(
            self.folder / f"{name}.onnx",
            [helper.make_node("Identity", ["a"], ["b"]), helper.make_node("Neg", ["c"], ["d"])],
            [
                helper.make_tensor_value_info("a", ONNX_TYPES[dtype], ["n", 2]),
                helper.make_tensor_value_info("c", TensorProto.FLOAT, ["n", 1]),
            ],
            [
                helper.make_tensor_value_info("b", ONNX_TYPES[dtype], ["n", 2]),
                helper.make_tensor_value_info("d", TensorProto.FLOAT, ["n", 1]),
            ],
            [],
        )
        inputs = [
            TensorSpec(name="a", dtype=dtype, shape=(-1, 2)),
            TensorSpec(name="c", dtype="FP32", shape=(-1, 1)),
        ]
        outputs = [
            TensorSpec(name="b", dtype=dtype, shape=(-1, 2)),
            TensorSpec(name="d", dtype="FP32", shape=(-1, 1)),
        ]
        self.table.activate(name, 1, "0" * 64, path, serving_manifest(name, 1, inputs, outputs), None)
        return name

    def activate_slow(self, steps: int) -> None:
        """z (1,) = x (1, 64, 64) multiplied by itself `steps` times, and summed: some 20 us a step."""
        nodes = [helper.make_node("Identity", ["x"], ["m0"])]
        nodes += [helper.make_node("MatMul", [f"m{i}", "x"], [f"m{i + 1}"]) for i in range(steps)]
        nodes.append(helper.make_node("ReduceSum", [f"m{steps}", "axes"], ["z"], keepdims=0))
        path = save_graph(
            self.folder / "slow.onnx",
            nodes,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64, 64])],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])],
            [onnx.numpy_helper.from_array(np.array([1, 2]), "axes")],
        )
        x = TensorSpec(name="x", dtype="FP32", shape=(1, 64, 64))
        z = TensorSpec(name="z", dtype="FP32", shape=(1,))
        self.table.activate("slow", 1, "0" * 64, path, serving_manifest("slow", 1, [x], [z]), None)


class RunningServer:
    """A server on a loop in a thread; `port` is where it listens."""

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        self.port = server.port

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)


@contextlib.contextmanager
def running(table: ModelTable, limits: Limits | None = None) -> Iterator[RunningServer]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def make() -> HttpServer:
        server = HttpServer(table, "127.0.0.1", 0, limits)
        await server.start()
        return server

    made = RunningServer(asyncio.run_coroutine_threadsafe(make(), loop).result(20), loop)
    try:
        yield made
    finally:
        made.call(made.server.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Models]:
    made = Models(tmp_path)
    yield made
    made.table.close()


@pytest.fixture
def serve() -> Callable[..., contextlib.AbstractContextManager[RunningServer]]:
    """`with serve(table, limits) as server:`"""
    return running
