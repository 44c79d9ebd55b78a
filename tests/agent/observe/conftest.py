"""A table with one small model that has a baseline, and an outbox."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgewise_agent.observe.outbox import Outbox
from edgewise_agent.serving.table import ModelTable
from edgewise_protocol.features import build_baseline
from edgewise_protocol.manifest import FileEntry, Golden, Manifest, Requirements, TensorSpec
from onnx import TensorProto, helper


class Watched:
    """logits (n, 3) = x (n, 5) @ w; the baseline is of standard normal inputs."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.w = rng.normal(size=(5, 3)).astype(np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["logits"])],
            "watched",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
            [onnx.numpy_helper.from_array(self.w, "w")],
        )
        self.path = folder / "model.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), self.path)
        x = rng.normal(size=(1000, 5)).astype(np.float32)
        self.baseline = build_baseline(x, x @ self.w, "classification", kll=False)
        self.table = ModelTable()
        self.activate(7)

    def activate(self, version: int) -> None:
        manifest = Manifest(
            spec_version="1.0",
            kind="inference",
            model="watched",
            version=version,
            profile="x86-64",
            requires=Requirements(engine="onnxruntime"),
            files=(FileEntry(name="model.onnx", sha256="0" * 64, size=1),),
            task="classification",
            inputs=(TensorSpec(name="x", dtype="FP32", shape=(-1, 5)),),
            outputs=(TensorSpec(name="logits", dtype="FP32", shape=(-1, 3)),),
            model_file="model.onnx",
            golden=Golden(file="golden.safetensors", samples=1, atol=0, rtol=0),
        )
        self.table.activate("watched", version, "0" * 64, self.path, manifest, self.baseline)

    def ask(self, batches: list[np.ndarray]) -> None:
        async def all_of_them() -> None:
            for x in batches:
                await self.table.infer("watched", None, {"x": x})

        asyncio.run(all_of_them())


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    yield made
    made.table.close()


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Any]:
    made = Outbox(tmp_path / "outbox.db", 1 << 20)
    yield made
    made.close()
