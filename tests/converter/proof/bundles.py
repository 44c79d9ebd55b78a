"""Small real bundles, and one that is broken on purpose."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from edgewise_converter import golden
from edgewise_protocol.bundle import BundleReader, file_entry, write_bundle
from edgewise_protocol.manifest import Golden, Manifest, Requirements, TensorSpec


def onnx_affine(scale: float = 2.0) -> bytes:
    """An ONNX file: y = scale * x + 1, x of (n, 4)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "k"], ["s"]), helper.make_node("Add", ["s", "c"], ["y"])],
        "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [
            numpy_helper.from_array(np.float32(scale).reshape(1), "k"),
            numpy_helper.from_array(np.float32(1.0).reshape(1), "c"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def manifest_of(files: Mapping[str, bytes], **changes: Any) -> Manifest:
    """A manifest for `onnx_affine`."""
    said: dict[str, Any] = {
        "spec_version": "1.0",
        "kind": "inference",
        "model": "affine",
        "version": 1,
        "profile": "x86-64",
        "requires": Requirements(engine="onnxruntime", machine="x86_64"),
        "files": tuple(file_entry(name, data) for name, data in sorted(files.items())),
        "inputs": (TensorSpec(name="x", dtype="FP32", shape=(-1, 4)),),
        "outputs": (TensorSpec(name="y", dtype="FP32", shape=(-1, 4)),),
        "format": "onnx",
        "model_file": "model.onnx",
        "golden": Golden(file=golden.GOLDEN_FILE, samples=3, atol=1e-4, rtol=1e-3),
        **changes,
    }
    return Manifest(**said)


def affine_files(scale: float = 2.0) -> dict[str, bytes]:
    """Model and golden answers of y = 2 x + 1; with another scale the model does not give them."""
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    return {
        "model.onnx": onnx_affine(scale),
        golden.GOLDEN_FILE: golden.encode({"x": x}, {"y": 2 * x + 1}),
    }


def write(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    with path.open("wb") as out:
        write_bundle(out, manifest, files)
    return path


def broken(source: Path, target: Path) -> Path:
    """A bundle whose weights were changed; the golden answers are kept, every digest is right."""
    with source.open("rb") as stream:
        reader = BundleReader(stream)
        manifest = reader.manifest
        files = {entry.name: reader.read(entry.name) for entry in manifest.files}
    data = files[manifest.model_file]
    changed = damage_onnx(data) if manifest.format == "onnx" else damage_tflite(data)
    assert hashlib.sha256(changed).digest() != hashlib.sha256(data).digest()
    files[manifest.model_file] = changed
    entries = tuple(file_entry(name, content) for name, content in sorted(files.items()))
    return write(target, msgspec.structs.replace(manifest, files=entries), files)


def damage_onnx(data: bytes) -> bytes:
    """The largest constant of whole or real numbers, turned upside down."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(data)
    largest = max(model.graph.initializer, key=lambda one: numpy_helper.to_array(one).nbytes)
    array = numpy_helper.to_array(largest)
    flipped = np.ascontiguousarray(array.reshape(-1)[::-1]).reshape(array.shape)
    largest.CopyFrom(numpy_helper.from_array(flipped, largest.name))
    return bytes(model.SerializeToString())


def damage_tflite(data: bytes) -> bytes:
    """The largest constant, turned upside down in place."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(data, 0)
    buffers = [model.Buffers(i).DataAsNumpy() for i in range(model.BuffersLength())]
    largest = max((b for b in buffers if not isinstance(b, int)), key=len)
    # The array is a view of the file: where it starts there is where it lies.
    start = largest.__array_interface__["data"][0] - np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    changed = io.BytesIO(data)
    changed.seek(start)
    changed.write(bytes(largest[::-1]))
    return changed.getvalue()
