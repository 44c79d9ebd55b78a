"""Small int8 TFLite files of one or two operators, their C built for this host, and TFLite Micro as the oracle."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from edgewise_converter.c99.source import Sources, generate
from numpy.typing import NDArray

Array = NDArray[Any]
TYPES = {np.dtype(np.float32): 0, np.dtype(np.int32): 2, np.dtype(np.int8): 9}
FLAGS = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]


class Int8Graph:
    """A graph in the making; each method gives the index of a tensor."""

    def __init__(self) -> None:
        self.model = schema.ModelT(version=3, buffers=[schema.BufferT()], operatorCodes=[], description=b"made by hand")
        self.graph = schema.SubGraphT(tensors=[], inputs=[], outputs=[], operators=[], name=b"main")
        self.model.subgraphs = [self.graph]

    def tensor(
        self, shape: Sequence[int], scale: Any = None, zero: int = 0, kind: int = 9, axis: int = 0, name: str = ""
    ) -> int:
        quantization = None
        if scale is not None:
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            quantization = schema.QuantizationParametersT(
                scale=scales.tolist(), zeroPoint=[zero] * len(scales), quantizedDimension=axis
            )
        label = name or f"tensor{len(self.graph.tensors)}"
        self.graph.tensors.append(
            schema.TensorT(name=label.encode(), shape=list(shape), type=kind, buffer=0, quantization=quantization)
        )
        return len(self.graph.tensors) - 1

    def input(self, shape: Sequence[int], scale: float, zero: int = 0, name: str = "", kind: int = 9) -> int:
        index = self.tensor(shape, scale, zero, name=name, kind=kind)
        self.graph.inputs.append(index)
        return index

    def constant(self, values: Array, scale: Any = None, zero: int = 0, axis: int = 0) -> int:
        index = self.tensor(values.shape, scale, zero, TYPES[values.dtype], axis)
        self.graph.tensors[index].buffer = len(self.model.buffers)
        self.model.buffers.append(schema.BufferT(data=np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)))
        return index

    def op(self, kind: str, inputs: Sequence[int], output: int, options: Any = None, version: int = 1) -> int:
        number = getattr(schema.BuiltinOperator, kind)
        code = schema.OperatorCodeT(deprecatedBuiltinCode=min(number, 127), builtinCode=number, version=version)
        self.model.operatorCodes.append(code)
        made = schema.OperatorT(
            opcodeIndex=len(self.model.operatorCodes) - 1, inputs=list(inputs), outputs=[output], builtinOptions=options
        )
        if options is not None:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.graph.operators.append(made)
        return output

    def build(self, *outputs: int) -> bytes:
        self.graph.outputs = list(outputs)
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


class HostModel:
    """Generated C as a library of this process."""

    def __init__(self, sources: Sources, folder: Path) -> None:
        folder.mkdir()
        for name, data in sources.files.items():
            (folder / name).write_bytes(data)
        library = folder / "model.so"
        subprocess.run(["gcc", *FLAGS, "-o", str(library), str(folder / "model.c")], check=True, timeout=60)
        self.sources, self._library = sources, ctypes.CDLL(str(library))

    def run(self, *inputs: Array, arena: Array | None = None) -> list[Array]:
        """Answer; in the given arena where there is one. Every output has guards that must stay as they are."""
        guarded = [np.full(tensor.size + 16, 77, np.int8) for tensor in self.sources.outputs]
        pointers = [array.ctypes.data for array in inputs] + [array.ctypes.data + 8 for array in guarded]
        call = self._library.model_invoke if arena is None else self._library.model_invoke_in
        given = pointers if arena is None else [arena.ctypes.data, *pointers]
        assert call(*map(ctypes.c_void_p, given)) == 0
        assert all((array[:8] == 77).all() and (array[-8:] == 77).all() for array in guarded)
        return [a[8:-8].reshape(t.shape) for a, t in zip(guarded, self.sources.outputs, strict=True)]

    def null(self) -> int:
        """What it says to null pointers."""
        count = len(self.sources.inputs) + len(self.sources.outputs)
        return int(self._library.model_invoke(*[ctypes.c_void_p(None)] * count))


def micro(data: bytes, inputs: Sequence[Array]) -> list[Array]:
    """TFLite Micro's answers."""
    from tflite_micro import runtime

    oracle = runtime.Interpreter.from_bytes(data, arena_size=1 << 20)
    for place, array in enumerate(inputs):
        oracle.set_input(array, place)
    oracle.invoke()
    count = len(schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(data), 0)).subgraphs[0].outputs)
    return [oracle.get_output(place) for place in range(count)]


@pytest.fixture
def new_graph() -> type[Int8Graph]:
    return Int8Graph


@pytest.fixture
def host(tmp_path: Path) -> Callable[[bytes], HostModel]:
    """Build a file's C for this host."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    count = iter(range(1000))
    return lambda data: HostModel(generate(data), tmp_path / f"c{next(count)}")


@pytest.fixture
def oracle() -> Callable[[bytes, Sequence[Array]], list[Array]]:
    pytest.importorskip("tflite_micro")
    return micro
