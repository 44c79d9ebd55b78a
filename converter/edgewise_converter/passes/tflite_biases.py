"""Biases of statically quantized TFLite files, held against the float ones.

A bias is stored in steps of input scale times weight scale. ai-edge-quantizer cuts it off at 32 bits, also where
the file stores 64 (int16 activations): a channel of small weights and a large bias then answers wrong in silence.
A 64-bit bias gets its own value; for a 32-bit one the steps of the channel's weights are widened until it fits,
which costs nothing: such weights hardly matter beside their bias.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import PassError
from edgewise_converter.passes.tflite_quantizing import Plain, scope
from edgewise_converter.tflite_file.operators import Operator, operators
from edgewise_converter.tflite_file.reading import read
from edgewise_converter.tflite_file.tensors import FLOAT32, INT8, is_constant, store, stored

_INT32: Final = 2
_INT64: Final = 4
_MOST: Final = 1 << 46
"""Steps that a 64-bit bias may have: kernels scale accumulators of 48 bits."""
_WEIGHTS_SECOND: Final = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_WITH_BIAS: Final = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D")


def mend_biases(model: Any, file: Plain, name: str) -> int:
    """Put the right values where 64-bit biases were cut off; the model (`ModelT`) is changed.

    Args:
        model: what the quantizer made of `file`.
        name: of the model, for messages.

    Returns:
        how many biases were mended.

    Raises:
        PassError: a bias does not fit into the steps that its layer has.
    """
    source = read(file.data)
    places = {scope(0, index): tensor for index, tensor in enumerate(source.subgraphs[0].tensors)}
    layers = {operator.layer: known for operator, known in zip(file.operators, file.names, strict=True)}
    tensors = model.subgraphs[0].tensors
    mended = 0
    for operator in operators(model):
        if operator.graph or operator.name not in _WITH_BIAS:
            continue
        index = operator.inputs[-1]
        bias = tensors[index]
        if index < 0 or bias.type not in (_INT32, _INT64) or not is_constant(model, bias):
            continue
        real = places.get(_base(bias))
        if real is None or real.type != FLOAT32 or not is_constant(source, real) or bias.quantization is None:
            continue
        exact = np.rint(stored(source, real).astype(np.float64) / np.asarray(bias.quantization.scale, np.float64))
        limit = _MOST if bias.type == _INT64 else (1 << 31) - 1
        if (np.abs(exact) > limit).any():
            plain = [places.get(_base(tensors[i])) for i in operator.inputs]
            if _widen(model, operator, stored(source, real), plain, source):
                mended += 1
                continue
            layer = layers.get(operator.layer, operator.layer)
            raise PassError(
                f"{name}: the bias of {layer!r} is too large for the steps of its weights and input; "
                "leave that layer in float (keep_float)"
            )
        if bias.type == _INT64 and np.abs(exact - stored(model, bias)).max() > 1:
            quantization = bias.quantization
            store(model, bias, exact.astype(np.int64))
            bias.quantization = quantization
            mended += 1
    return mended


def _base(tensor: Any) -> str:
    """What a tensor of the quantized file was called in the plain one; quantizers add to names."""
    found = re.match(rb"g\d+t\d+", bytes(tensor.name or b""))
    return found.group().decode() if found else ""


def _widen(model: Any, operator: Operator, bias: NDArray[Any], plain: list[Any], source: Any) -> bool:
    """Widen the weights' steps in channels whose bias does not fit; whether it could be done."""
    if operator.name not in _WEIGHTS_SECOND or plain[1] is None or plain[1].type != FLOAT32:
        return False
    tensors = model.subgraphs[0].tensors
    entering, weights, stored_bias = (tensors[operator.inputs[i]] for i in (0, 1, -1))
    users = sum(other.inputs.count(operator.inputs[1]) for other in operators(model) if other.graph == 0)
    scales = np.array(weights.quantization.scale, np.float64)
    if users != 1 or weights.type != INT8 or len(scales) != len(bias) or not is_constant(source, plain[1]):
        return False
    wide = stored_bias.type == _INT64
    step, real_bias = float(entering.quantization.scale[0]), bias.astype(np.float64)
    fitting = np.abs(real_bias) / (step * (1 << 40 if wide else 1 << 30))
    scales = np.maximum(scales, fitting).astype(np.float32)
    steps_of_bias = scales * np.float32(step)
    along = [1] * len(weights.shape)
    along[weights.quantization.quantizedDimension] = -1
    real = stored(source, plain[1]).reshape([int(size) for size in plain[1].shape])
    narrow = np.clip(np.rint(real / scales.reshape(along)), -127, 127).astype(np.int8)
    exact = np.rint(real_bias / steps_of_bias).astype(np.int64 if wide else np.int32)
    for tensor, values, steps in ((weights, narrow, scales), (stored_bias, exact, steps_of_bias)):
        quantization = tensor.quantization
        store(model, tensor, values)
        quantization.scale = steps.tolist()
        tensor.quantization = quantization
    return True
