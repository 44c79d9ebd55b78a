"""A hand-made training bundle (softmax regression), so that no test needs torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from edgewise_agent.observe.outbox import Outbox
from edgewise_protocol.bundle import file_entry, write_bundle
from edgewise_protocol.manifest import Manifest, Requirements, TensorSpec, TrainingSpec
from edgewise_protocol.rounds import Offer, OfferBody
from edgewise_protocol.targets import SignedFile, TargetCustom, training_path, weights_path
from onnx import TensorProto, helper
from safetensors.numpy import save, save_file

FEATURES, CLASSES = 4, 3
MOMENTUM = 0.9


def softmax_step() -> bytes:
    """loss, correct, new weights of one step on x (n, 4), y (n,); cross-entropy, momentum, FedProx."""
    nodes, constants = [], []

    def op(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(name: str, value: Any) -> str:
        constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    op("MatMul", ["x", "p.w"], "xw")
    op("Add", ["xw", "p.b"], "z")
    op("LogSoftmax", ["z"], "logp", axis=1)
    op("Exp", ["logp"], "prob")
    constant("depth", np.array([CLASSES]))
    constant("offon", np.array([0, 1], np.float32))
    op("OneHot", ["y", "depth", "offon"], "hot", axis=-1)
    op("Mul", ["logp", "hot"], "picked")
    constant("axis1", np.array([1]))
    constant("axis0", np.array([0]))
    op("ReduceSum", ["picked", "axis1"], "rows", keepdims=0)
    op("ReduceMean", ["rows", "axis0"], "mean", keepdims=0)
    op("Neg", ["mean"], "loss")
    op("ArgMax", ["z"], "best", axis=1, keepdims=0)
    op("Equal", ["best", "y"], "right")
    op("Cast", ["right"], "right64", to=TensorProto.INT64)
    op("ReduceSum", ["right64", "axis0"], "correct", keepdims=0)
    op("Sub", ["prob", "hot"], "diff")
    op("Shape", ["y"], "shape")
    op("Squeeze", ["shape"], "n64")
    op("Cast", ["n64"], "n", to=TensorProto.FLOAT)
    op("Div", ["diff", "n"], "dz")
    op("Transpose", ["x"], "xt", perm=[1, 0])
    op("MatMul", ["xt", "dz"], "grad.w")
    op("ReduceSum", ["dz", "axis0"], "grad.b", keepdims=0)
    constant("momentum", np.float32(MOMENTUM))
    for name in ("w", "b"):
        op("Sub", [f"p.{name}", f"g.{name}"], f"away.{name}")
        op("Mul", ["mu", f"away.{name}"], f"prox.{name}")
        op("Add", [f"grad.{name}", f"prox.{name}"], f"pull.{name}")
        op("Mul", ["momentum", f"m.{name}"], f"old.{name}")
        op("Add", [f"old.{name}", f"pull.{name}"], f"new_m.{name}")
        op("Mul", ["lr", f"new_m.{name}"], f"move.{name}")
        op("Sub", [f"p.{name}", f"move.{name}"], f"new_p.{name}")
    constant("one", np.array([1], np.int64))
    op("Add", ["b.steps", "one"], "new_b.steps")
    shapes = {"w": [FEATURES, CLASSES], "b": [CLASSES]}
    f32, i64 = TensorProto.FLOAT, TensorProto.INT64

    def value(name: str, kind: int, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    inputs = [value("x", f32, ["n", FEATURES]), value("y", i64, ["n"]), value("lr", f32, []), value("mu", f32, [])]
    inputs += [value(f"{p}.{k}", f32, s) for p in "pmg" for k, s in shapes.items()] + [value("b.steps", i64, [1])]
    outputs = [value("loss", f32, []), value("correct", i64, [])]
    outputs += [value(f"new_{p}.{k}", f32, s) for p in "pm" for k, s in shapes.items()]
    outputs += [value("new_b.steps", i64, [1])]
    graph = helper.make_graph(nodes, "step", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


SPEC = TrainingSpec(
    step_file="step.onnx",
    initial_file="initial.safetensors",
    x=TensorSpec(name="x", dtype="FP32", shape=(-1, FEATURES)),
    y=TensorSpec(name="y", dtype="INT64", shape=(-1,)),
    params=(
        TensorSpec(name="w", dtype="FP32", shape=(FEATURES, CLASSES)),
        TensorSpec(name="b", dtype="FP32", shape=(CLASSES,)),
    ),
    buffers=(TensorSpec(name="steps", dtype="INT64", shape=(1,)),),
)


class Material(NamedTuple):
    """What a round is made of, on disk."""

    bundle: Path
    weights: Path
    data: Path
    step: bytes
    spec: TrainingSpec
    start: dict[str, np.ndarray]
    x: np.ndarray
    y: np.ndarray


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("round")
    rng = np.random.default_rng(5)
    y = rng.integers(0, CLASSES, 101)
    x = (rng.normal(size=(101, FEATURES)) + np.eye(CLASSES, FEATURES)[y] * 2).astype(np.float32)
    start = {
        "p.w": rng.normal(size=(FEATURES, CLASSES)).astype(np.float32),
        "p.b": np.zeros(CLASSES, np.float32),
        "b.steps": np.zeros(1, np.int64),
    }
    step = softmax_step()
    files = {"step.onnx": step, "initial.safetensors": save(start)}
    manifest = Manifest(
        spec_version="1.0",
        kind="training",
        model="digits",
        version=1,
        profile="any",
        requires=Requirements(engine="onnxruntime"),
        files=tuple(file_entry(name, data) for name, data in files.items()),
        training=SPEC,
    )
    with (folder / "training.ewb").open("wb") as out:
        write_bundle(out, manifest, files)
    save_file(start, folder / "weights.safetensors")
    save_file({"x": x, "y": y}, folder / "data.safetensors")
    return Material(
        folder / "training.ewb",
        folder / "weights.safetensors",
        folder / "data.safetensors",
        step,
        SPEC,
        start,
        x,
        y,
    )


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    made = Outbox(tmp_path / "outbox.db", 1 << 20)
    yield made
    made.close()


@pytest.fixture
def make_offer(material: Material) -> Callable[..., Offer]:
    def make(round_id: str = "r1", number: int = 1, keys: str = "", **body: Any) -> Offer:
        def signed(path: str, kind: str, file: Path) -> SignedFile:
            data = file.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            custom = TargetCustom(chunk_index="0" * 64, kind=kind, model="digits")
            return SignedFile(path=path, length=len(data), sha256=digest, custom=custom)

        return Offer(
            keys=keys,
            version=number,
            expires=datetime.now(UTC) + timedelta(hours=1),
            body=OfferBody(
                **{
                    "round_id": round_id,
                    "federation": "fed",
                    "number": number,
                    "channel": "lab",
                    "model": "digits",
                    "epochs": 3,
                    "batch_size": 10,
                    "lr": 0.1,
                    "seed": 4,
                    **body,
                }
            ),
            training=signed(training_path("lab", "digits", 1), "training", material.bundle),
            weights=signed(weights_path("lab", "digits", round_id), "weights", material.weights),
        )

    return make
