"""ONNX float32 to int8: static, per channel, with true minimum and maximum of the calibration data."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import PassError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.onnx_catalogue import OnnxInt8Config
from edgewise_converter.passes.onnx_graph import canonical


def apply(materials: Materials, before: Artifact, config: OnnxInt8Config) -> Artifact:
    """Quantize an exported graph.

    Raises:
        PassError: the quantizer refuses the graph.
    """
    onnx = need("onnx")
    quantization = need("onnxruntime.quantization")
    samples = materials.calibration.spread(config.calibration_samples).feeds[materials.inputs[0].name]
    activations = quantization.QuantType.QUInt8 if config.activations == "uint8" else quantization.QuantType.QInt8
    with tempfile.TemporaryDirectory(prefix="edgewise-int8-") as folder:
        out = Path(folder) / "model.onnx"
        try:
            with quietly():
                quantization.quantize_static(
                    onnx.load_from_string(before.data),
                    out,
                    _reader(quantization, materials.inputs[0].name, samples, config.calibration_batch),
                    quant_format=quantization.QuantFormat.QDQ,
                    per_channel=True,
                    reduce_range=config.reduce_range,
                    activation_type=activations,
                    weight_type=quantization.QuantType.QInt8,
                    calibrate_method=quantization.CalibrationMethod.MinMax,
                )
                model = onnx.load(out)
        except (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, OSError) as error:
            raise PassError(f"{materials.model} cannot be quantized to int8: {error}") from error
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise PassError(f"{materials.model} holds no operator that onnxruntime can quantize")
    data = canonical(model, input_name=materials.inputs[0].name, output_name=materials.outputs[0].name)
    return Artifact(data, "onnx", "int8")


def _reader(quantization: Any, name: str, samples: NDArray[np.float32], batch: int) -> Any:
    """Calibration batches in the form that onnxruntime takes."""

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(np.array_split(samples, max(1, -(-len(samples) // batch))))

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            found = next(self._batches, None)
            return None if found is None else {name: np.ascontiguousarray(found)}

    return Reader()
