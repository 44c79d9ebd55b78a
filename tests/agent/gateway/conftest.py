"""Boards as processes: the converter's real firmware, compiled for this host."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from edgewise_converter.c99.assembly import firmware_sources
from edgewise_converter.c99.building import build
from edgewise_converter.c99.source import generate
from edgewise_converter.c99.toolchain import compile_program
from edgewise_protocol.firmware import IMAGE_FILE, Firmware, pack, unpack
from edgewise_protocol.manifest import Golden, Manifest, Requirements, TensorSpec

BOARD = "mps2-an386"


def tflite(scale: float) -> bytes:
    """int8 (1, 4) of scale 0.1 to int8 (1, 4) of another scale."""

    def tensor(name: bytes, s: float, z: int) -> Any:
        quantization = schema.QuantizationParametersT(scale=[s], zeroPoint=[z], quantizedDimension=0)
        return schema.TensorT(name=name, shape=[1, 4], type=9, buffer=0, quantization=quantization)

    number = schema.BuiltinOperator.QUANTIZE
    model = schema.ModelT(
        version=3,
        buffers=[schema.BufferT()],
        operatorCodes=[schema.OperatorCodeT(deprecatedBuiltinCode=number, builtinCode=number, version=2)],
    )
    op = schema.OperatorT(opcodeIndex=0, inputs=[0], outputs=[1], builtinOptions=schema.QuantizeOptionsT())
    op.builtinOptionsType = schema.BuiltinOptions.QuantizeOptions
    graph = schema.SubGraphT(tensors=[tensor(b"x", 0.1, 3), tensor(b"y", scale, -7)], inputs=[0], outputs=[1])
    graph.operators = [op]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def answer(scale: float, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the model means, up to a step."""
    whole = np.clip(np.round(x / 0.1) + 3, -128, 127)
    return np.clip(np.round((whole - 3) * 0.1 / scale) - 7, -128, 127) * scale + 7 * scale


@pytest.fixture(scope="session")
def model_file() -> Callable[[float], bytes]:
    """A file of format `c99` whose image is a program of this host."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    made: dict[float, bytes] = {}

    def make(scale: float) -> bytes:
        if scale not in made:
            data = tflite(scale)
            file = unpack(build(data, None, image=False).data)
            image = compile_program(firmware_sources(generate(data), None))
            told = {name: getattr(file.firmware, name) for name in Firmware.__struct_fields__}
            firmware = Firmware(**{**told, "board": BOARD, "image": IMAGE_FILE})
            made[scale] = pack(firmware, {**file.members, IMAGE_FILE: image})
        return made[scale]

    return make


@pytest.fixture
def manifest() -> Callable[..., Manifest]:
    def make(model: str = "tiny", version: int = 1) -> Manifest:
        return Manifest(
            spec_version="1.0",
            kind="inference",
            model=model,
            version=version,
            profile=BOARD,
            requires=Requirements(
                engine="c99", engine_min="1", engine_below="2", machine="armv7e-m", compatible=(BOARD,)
            ),
            files=(),
            inputs=(TensorSpec(name="x", dtype="FP32", shape=(-1, 4)),),
            outputs=(TensorSpec(name="logits", dtype="FP32", shape=(-1, 4)),),
            format="c99",
            precision="int8",
            model_file="model.c99",
            golden=Golden(file="golden.safetensors", samples=16, atol=0.2, rtol=0.0),
        )

    return make


@pytest.fixture
def meant() -> Callable[..., Any]:
    return answer
