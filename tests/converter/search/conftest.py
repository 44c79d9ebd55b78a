"""Small models whose every number is known, and samples of their inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from edgewise_profiles import catalogue
from edgewise_profiles.schema import Profile, Target
from onnx import TensorProto, helper, numpy_helper

WIDTH = 16
TALL = 1024.0
"""How much larger one channel between the second and the third layer is than the others."""


def dense(layers: list[np.ndarray[Any, Any]], names: str = "abcdefgh") -> bytes:
    """An ONNX file: products with constant weights, and ReLU between them, opset 17."""
    nodes, weights, last = [], [], "x"
    for i, matrix in enumerate(layers):
        out = "y" if i == len(layers) - 1 else f"h{i}"
        weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"w{i}"))
        product = out if i == len(layers) - 1 else f"p{i}"
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [product], name=f"layer_{names[i]}"))
        if product != out:
            nodes.append(helper.make_node("Relu", [product], [out], name=f"relu_{names[i]}"))
        last = out
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", layers[0].shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", layers[-1].shape[1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def uneven_layers() -> list[np.ndarray[Any, Any]]:
    """Five layers; between the second and the third one channel is 1,024 times as large as the others.

    The third layer divides it again, so that float does not notice, and int8, with one scale for
    the whole tensor, loses all other channels.
    """
    rng = np.random.default_rng(3)
    found = [rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH) for _ in range(5)]
    found[1][:, 0] *= TALL
    found[2][0, :] /= TALL
    return found


@pytest.fixture(scope="session")
def x() -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).normal(size=(200, WIDTH)).astype(np.float32)


@pytest.fixture
def samples(tmp_path: Path, x: Any) -> Path:
    path = tmp_path / "samples.npz"
    np.savez(path, x=x)
    return path


@pytest.fixture
def even(tmp_path: Path) -> Path:
    """A model that int8 does not hurt."""
    rng = np.random.default_rng(4)
    path = tmp_path / "even.onnx"
    path.write_bytes(dense([rng.normal(size=(WIDTH, 64)), rng.normal(size=(64, 64)) / 8, rng.normal(size=(64, 4)) / 8]))
    return path


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """A model that full int8 ruins, because of one tensor."""
    path = tmp_path / "uneven.onnx"
    path.write_bytes(dense(uneven_layers()))
    return path


SHARED = 5
"""Branches of `misleading` whose output is the same for all classes."""


@pytest.fixture
def misleading(tmp_path: Path) -> Path:
    """A classifier whose largest errors under int8 change no class.

    Layers `layer_s0` to `layer_s4` add to all classes one and the same large value; `layer_a` and `layer_b` tell the
    classes apart, and between them one channel is 1,024 times as large as the others.
    """
    rng = np.random.default_rng(6)
    first, second = (rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH) for _ in range(2))
    first[:, 0] *= TALL
    second[0, :] /= TALL
    weights = {"a": first, "b": second}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="layer_a"),
        helper.make_node("Relu", ["p"], ["h"], name="relu_a"),
        helper.make_node("MatMul", ["h", "b"], ["q"], name="layer_b"),
        helper.make_node("Tanh", ["q"], ["sum0"], name="tanh_b"),
    ]
    for i in range(SHARED):
        weights[f"v{i}"] = np.tile(rng.normal(size=(WIDTH, 1)) * 64, (1, WIDTH))
        out = "y" if i == SHARED - 1 else f"sum{i + 1}"
        nodes.append(helper.make_node("MatMul", ["x", f"v{i}"], [f"t{i}"], name=f"layer_s{i}"))
        nodes.append(helper.make_node("Relu", [f"t{i}"], [f"r{i}"], name=f"relu_s{i}"))
        nodes.append(helper.make_node("Add", [f"sum{i}", f"r{i}"], [out], name=f"add_{i}"))
    graph = helper.make_graph(
        nodes,
        "misleading",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(matrix.astype(np.float32), name) for name, matrix in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path = tmp_path / "misleading.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def narrowed(name: str, *targets: tuple[str, str], **budget: Any) -> Profile:
    """A profile of the catalogue with these targets alone, and no bound on latency."""
    profile = catalogue.load(name)
    loose = msgspec.structs.replace(profile.budget, latency_ms=60_000.0, **budget)
    kept = tuple(Target(engine=e, precision=p) for e, p in targets)  # type: ignore[arg-type]
    return msgspec.structs.replace(profile, targets=kept or profile.targets, budget=loose)


@pytest.fixture(scope="session")
def narrow() -> Any:
    return narrowed
