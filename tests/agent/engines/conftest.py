"""Small real models: ONNX by onnx.helper, TFLite by the schema's own object API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as tfl
from edgewise_protocol.manifest import FileEntry, Golden, Manifest, Requirements, TensorSpec
from onnx import TensorProto, helper

_TFL_TYPES = {
    np.dtype(np.float32): tfl.TensorType.FLOAT32,
    np.dtype(np.int8): tfl.TensorType.INT8,
    np.dtype(np.uint8): tfl.TensorType.UINT8,
    np.dtype(np.int32): tfl.TensorType.INT32,
}


class ModelFiles:
    """Writes model files and the manifests that go with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def manifest(self, engine: str, inputs: list[TensorSpec], outputs: list[TensorSpec], **more: Any) -> Manifest:
        return Manifest(
            spec_version="1.0",
            kind="inference",
            model="tiny",
            version=1,
            profile="x86-64",
            requires=Requirements(engine=engine),
            files=(FileEntry(name="model.bin", sha256="0" * 64, size=1),),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            model_file="model.bin",
            golden=Golden(file="golden.safetensors", samples=1, atol=0, rtol=0),
            **more,
        )

    def onnx_linear(self, w: np.ndarray, b: np.ndarray, batch: int | str = "n") -> Path:
        """logits (n, C) = x (n, F) @ w + b."""
        graph = helper.make_graph(
            [helper.make_node("Gemm", ["x", "w", "b"], ["logits"])],
            "linear",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, w.shape[0]])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, w.shape[1]])],
            [onnx.numpy_helper.from_array(w, "w"), onnx.numpy_helper.from_array(b, "b")],
        )
        return self.save_onnx(graph)

    def onnx_identity(self, dtype: int) -> Path:
        graph = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "identity",
            [helper.make_tensor_value_info("x", dtype, ["n", 2])],
            [helper.make_tensor_value_info("y", dtype, ["n", 2])],
        )
        return self.save_onnx(graph)

    def save_onnx(self, graph: onnx.GraphProto) -> Path:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        path = self.folder / f"{graph.name}.onnx"
        onnx.save(model, path)
        return path

    def tflite(
        self,
        tensors: list[tuple[str, tuple[int, ...], Any, tuple[float, int] | None, np.ndarray | None]],
        operator: int,
        arguments: list[int],
        results: list[int],
        inputs: list[int],
        outputs: list[int],
        options: Any = None,
        options_type: int = 0,
    ) -> Path:
        """A file of one operator. A tensor is (name, shape, dtype, (scale, zero point), constant data)."""
        import flatbuffers

        model = tfl.ModelT()
        model.version = 3
        model.buffers = [tfl.BufferT()]
        model.buffers[0].data = []
        graph = tfl.SubGraphT()
        graph.tensors = []
        for name, shape, dtype, quantization, data in tensors:
            tensor = tfl.TensorT()
            tensor.name, tensor.shape, tensor.type = name, list(shape), _TFL_TYPES[np.dtype(dtype)]
            tensor.buffer = 0
            if data is not None:
                buffer = tfl.BufferT()
                buffer.data = list(np.ascontiguousarray(data).tobytes())
                tensor.buffer = len(model.buffers)
                model.buffers.append(buffer)
            if quantization is not None:
                tensor.quantization = tfl.QuantizationParametersT()
                tensor.quantization.scale = [quantization[0]]
                tensor.quantization.zeroPoint = [quantization[1]]
            graph.tensors.append(tensor)
        code = tfl.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = operator
        code.version = 4 if operator == tfl.BuiltinOperator.FULLY_CONNECTED else 2
        node = tfl.OperatorT()
        node.opcodeIndex, node.inputs, node.outputs = 0, arguments, results
        node.builtinOptions, node.builtinOptionsType = options, options_type
        graph.inputs, graph.outputs, graph.operators = inputs, outputs, [node]
        model.operatorCodes, model.subgraphs = [code], [graph]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        path = self.folder / f"model-{len(list(self.folder.iterdir()))}.tflite"
        path.write_bytes(bytes(builder.Output()))
        return path

    def tflite_linear(
        self,
        w: np.ndarray,
        b: np.ndarray,
        *,
        dtype: Any = np.float32,
        scales: tuple[tuple[float, int], tuple[float, int], tuple[float, int]] | None = None,
        batch: int = 1,
        names: tuple[str, str] = ("serving_default_args_0:0", "StatefulPartitionedCall:0"),
    ) -> Path:
        """logits (batch, C) = x (batch, F) @ w.T + b; `scales` are those of x, w and logits."""
        sx, sw, sy = scales or (None, None, None)
        options = tfl.FullyConnectedOptionsT()
        bias_scale = None if scales is None else (scales[0][0] * scales[1][0], 0)
        return self.tflite(
            [
                (names[0], (batch, w.shape[1]), dtype, sx, None),
                ("w", w.shape, w.dtype, sw, w),
                ("b", b.shape, b.dtype, bias_scale, b),
                (names[1], (batch, w.shape[0]), dtype, sy, None),
            ],
            tfl.BuiltinOperator.FULLY_CONNECTED,
            [0, 1, 2],
            [3],
            [0],
            [3],
            options,
            tfl.BuiltinOptions.FullyConnectedOptions,
        )

    def tflite_quantize(self, scale: float, zero_point: int, dtype: Any) -> Path:
        """q (1, 64) integers = QUANTIZE(x (1, 64) float32), by TFLite's own kernel."""
        return self.tflite(
            [("x", (1, 64), np.float32, None, None), ("q", (1, 64), dtype, (scale, zero_point), None)],
            tfl.BuiltinOperator.QUANTIZE,
            [0],
            [1],
            [0],
            [1],
            tfl.QuantizeOptionsT(),
            tfl.BuiltinOptions.QuantizeOptions,
        )


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles(tmp_path)


@pytest.fixture(scope="session")
def session_files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return ModelFiles(tmp_path_factory.mktemp("models"))
