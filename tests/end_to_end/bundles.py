"""Small, real bundles by hand. Each board and version has weights of its own, so that an answer tells its origin."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import onnx
from edgewise_protocol.bundle import file_entry, write_bundle
from edgewise_protocol.features import build_baseline
from edgewise_protocol.manifest import Golden, Manifest, Requirements, TensorSpec, TrainingSpec
from edgewise_protocol.sketches import encode_baseline
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

FEATURES, CLASSES = 4, 3
Floats = NDArray[np.float32]


def samples(number: int, seed: int = 3) -> Floats:
    """Inputs of shape (number, 4)."""
    return np.random.default_rng(seed).normal(size=(number, FEATURES)).astype(np.float32)


def weights_of(model: str, version: int, board: str) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(zlib.crc32(f"{model} {version} {board}".encode()))
    return rng.normal(size=(FEATURES, CLASSES)).astype(np.float32), rng.normal(size=CLASSES).astype(np.float32)


def logits_of(model: str, version: int, board: str, x: Floats) -> Floats:
    """What a version must answer on a board, computed by numpy; shape (N, 3)."""
    w, b = weights_of(model, version, board)
    return x @ w + b


def _graph(model: str, version: int, board: str, padding: int) -> bytes:
    w, b = weights_of(model, version, board)
    initializers = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")]
    if padding:
        noise = np.random.default_rng(version).integers(0, 255, padding, np.uint8)
        initializers.append(numpy_helper.from_array(noise, "padding"))
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["logits"])],
        model,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        initializers,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def inference_bundle(
    folder: Path, model: str, version: int, board: str, *, padding: int = 0, wrong_golden: bool = False
) -> Path:
    """A bundle for one board. `padding` makes it so many bytes longer; with `wrong_golden` its self-test must fail."""
    x, many = samples(16, seed=7), samples(2000, seed=8)
    y, answers = (logits_of(model, version, board, of) for of in (x, many))
    body = _graph(model, version, board, padding)
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model.onnx", "digest": {"sha256": hashlib.sha256(body).hexdigest()}}],
        "predicateType": "https://edgewise.dev/conversion/v1",
        "predicate": {"run": "by-hand"},
    }
    files = {
        "model.onnx": body,
        "golden.safetensors": save({"input.x": x, "output.logits": -y if wrong_golden else y}),
        "baseline.json": encode_baseline(build_baseline(many, answers, "classification", kll=False)),
        "provenance.json": json.dumps(statement).encode(),
    }
    manifest = Manifest(
        spec_version="1.0",
        kind="inference",
        model=model,
        version=version,
        profile=board,
        requires=Requirements(engine="onnxruntime", compatible=(board,)),
        files=tuple(file_entry(name, data) for name, data in files.items()),
        task="classification",
        inputs=(TensorSpec(name="x", dtype="FP32", shape=(-1, FEATURES)),),
        outputs=(TensorSpec(name="logits", dtype="FP32", shape=(-1, CLASSES)),),
        model_file="model.onnx",
        golden=Golden(file="golden.safetensors", samples=16, atol=1e-4, rtol=1e-4),
        baseline_file="baseline.json",
        provenance_file="provenance.json",
    )
    return _write(folder, manifest, files)


def training_bundle(folder: Path, model: str, step: bytes, spec: TrainingSpec, start: dict[str, np.ndarray]) -> Path:
    """Version 1 of a training bundle around a training step and the weights to start from."""
    files = {spec.step_file: step, spec.initial_file: save(start)}
    manifest = Manifest(
        spec_version="1.0",
        kind="training",
        model=model,
        version=1,
        profile="any",
        requires=Requirements(engine="onnxruntime"),
        files=tuple(file_entry(name, data) for name, data in files.items()),
        training=spec,
    )
    return _write(folder, manifest, files)


def _write(folder: Path, manifest: Manifest, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{manifest.model}-{manifest.version}-{manifest.profile}.ewb"
    with path.open("wb") as stream:
        write_bundle(stream, manifest, files)
    return path
