"""Danger: generated C that rounds, pads, clips or strides otherwise than TFLite Micro, and so answers otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

Random = np.random.Generator


def scale(random: Random) -> float:
    return float(np.float32(10 ** random.uniform(-2.5, -0.5)))


def zero(random: Random) -> int:
    return int(random.integers(-128, 128))


def out_scale(random: Random, product: float, count: int) -> float:
    """A scale by which most sums of `count` products fill the int8 range, and some saturate."""
    return float(np.float32(product * 40 * count**0.5 * 10 ** random.uniform(-0.4, 0.4)))


def activation(random: Random) -> int:
    return int(random.choice([0, 1, 2, 3]))


def convolution(g: Any, random: Random, depthwise: bool) -> int:
    n, h, w, c = (int(random.integers(1, k)) for k in (3, 9, 9, 5))
    kh, kw = int(random.integers(1, 4)), int(random.integers(1, 4))
    sh, sw, dh, dw = (int(random.integers(1, 3)) for _ in range(4))
    same = (dh * (kh - 1) + 1 > h or dw * (kw - 1) + 1 > w) or bool(random.integers(2))
    groups = int(random.integers(1, 3)) if not depthwise else 1
    multiplier = int(random.integers(1, 4))
    c *= groups
    out_c = c * multiplier if depthwise else groups * int(random.integers(1, 5))
    reach = (dh * (kh - 1) + 1, dw * (kw - 1) + 1)
    size = [-(-e // s) if same else (e - r) // s + 1 for e, s, r in zip((h, w), (sh, sw), reach, strict=True)]
    x = g.input((n, h, w, c), scale(random), zero(random))
    x_scale = float(np.float32(g.graph.tensors[x].quantization.scale[0]))
    shape = (1, kh, kw, out_c) if depthwise else (out_c, kh, kw, c // groups)
    scales = np.array([scale(random) for _ in range(out_c)], np.float32)
    weights = g.constant(random.integers(-127, 128, shape).astype(np.int8), scales, axis=3 if depthwise else 0)
    bias = g.constant(random.integers(-3000, 3000, out_c).astype(np.int32), x_scale * scales)
    y_scale = out_scale(random, x_scale * float(scales.mean()) * 40, kh * kw * c)
    y = g.tensor((n, *size, out_c), y_scale, zero(random))
    options = (schema.DepthwiseConv2DOptionsT if depthwise else schema.Conv2DOptionsT)(
        padding=0 if same else 1,
        strideH=sh,
        strideW=sw,
        dilationHFactor=dh,
        dilationWFactor=dw,
        fusedActivationFunction=activation(random),
    )
    if depthwise:
        options.depthMultiplier = multiplier
    return int(g.op("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", [x, weights, bias], y, options, version=3))


def conv_2d(g: Any, random: Random) -> int:
    return convolution(g, random, depthwise=False)


def depthwise_conv_2d(g: Any, random: Random) -> int:
    return convolution(g, random, depthwise=True)


def fully_connected(g: Any, random: Random, per_channel: bool = False) -> int:
    rows, in_c, out_c = (int(random.integers(1, k)) for k in (4, 40, 12))
    x_scale = scale(random)
    x = g.input((rows, in_c), x_scale, zero(random))
    scales = np.array([scale(random) for _ in range(out_c if per_channel else 1)], np.float32)
    weights = g.constant(random.integers(-127, 128, (out_c, in_c)).astype(np.int8), scales)
    bias_scales = np.float32(x_scale) * scales
    bias = g.constant(random.integers(-3000, 3000, out_c).astype(np.int32), bias_scales) if random.integers(2) else -1
    y_scale = out_scale(random, x_scale * float(scales.mean()) * 40, in_c)
    y = g.tensor((rows, out_c), y_scale, zero(random))
    options = schema.FullyConnectedOptionsT(fusedActivationFunction=activation(random))
    return int(g.op("FULLY_CONNECTED", [x, weights, bias], y, options, version=5 if per_channel else 4))


def fully_connected_per_channel(g: Any, random: Random) -> int:
    return fully_connected(g, random, per_channel=True)


def pool(g: Any, random: Random, kind: str) -> int:
    n, h, w, c = (int(random.integers(1, k)) for k in (3, 9, 9, 6))
    kh, kw = int(random.integers(1, h + 1)), int(random.integers(1, w + 1))
    sh, sw = int(random.integers(1, 4)), int(random.integers(1, 4))
    same = bool(random.integers(2))
    size = [-(-e // s) if same else (e - k) // s + 1 for e, s, k in zip((h, w), (sh, sw), (kh, kw), strict=True)]
    s, z = scale(random), zero(random)
    x = g.input((n, h, w, c), s, z)
    options = schema.Pool2DOptionsT(
        padding=0 if same else 1,
        strideH=sh,
        strideW=sw,
        filterHeight=kh,
        filterWidth=kw,
        fusedActivationFunction=activation(random),
    )
    return int(g.op(kind, [x], g.tensor((n, *size, c), s, z), options, version=2))


def average_pool_2d(g: Any, random: Random) -> int:
    return pool(g, random, "AVERAGE_POOL_2D")


def max_pool_2d(g: Any, random: Random) -> int:
    return pool(g, random, "MAX_POOL_2D")


def mean(g: Any, random: Random, same: bool = False) -> int:
    shape = tuple(int(random.integers(1, k)) for k in (3, 9, 9, 6))
    axes = [(1, 2), (1, 2), (2,), (3,)][int(random.integers(4))]
    keep = bool(random.integers(2))
    left = tuple(1 if i in axes else s for i, s in enumerate(shape) if keep or i not in axes)
    s, z = scale(random), zero(random)
    x = g.input(shape, s, z)
    y = g.tensor(left, s if same else s * float(random.uniform(0.3, 1.5)), z if same else zero(random))
    indices = g.constant(np.array(axes, np.int32))
    return int(g.op("MEAN", [x, indices], y, schema.ReducerOptionsT(keepDims=keep), version=2))


def mean_of_the_same_scale(g: Any, random: Random) -> int:
    return mean(g, random, same=True)


def binary(g: Any, random: Random, kind: str, options: Any) -> int:
    shape = tuple(int(random.integers(1, k)) for k in (3, 6, 6, 6))
    other = tuple(s if random.integers(3) else 1 for s in shape) if random.integers(2) else shape
    scales = scale(random), scale(random)
    x1 = g.input(shape, scales[0], zero(random))
    if random.integers(3) == 0:
        x2 = g.constant(random.integers(-128, 128, other).astype(np.int8), scales[1], zero(random))
    else:
        x2 = g.input(other, scales[1], zero(random))
    whole = scales[0] * scales[1] * 60 if kind == "MUL" else max(scales)
    y = g.tensor(shape, whole * float(random.uniform(0.7, 2.5)), zero(random))
    options.fusedActivationFunction = activation(random)
    return int(g.op(kind, [x1, x2] if random.integers(2) else [x2, x1], y, options, version=2))


def add(g: Any, random: Random) -> int:
    return binary(g, random, "ADD", schema.AddOptionsT())


def sub(g: Any, random: Random) -> int:
    return binary(g, random, "SUB", schema.SubOptionsT())


def mul(g: Any, random: Random) -> int:
    return binary(g, random, "MUL", schema.MulOptionsT())


def softmax(g: Any, random: Random) -> int:
    rows, depth = int(random.integers(1, 5)), int(random.integers(1, 30))
    x = g.input((rows, depth), scale(random), zero(random))
    options = schema.SoftmaxOptionsT(beta=float(random.choice([0.5, 1.0, 2.0])))
    return int(g.op("SOFTMAX", [x], g.tensor((rows, depth), 1 / 256, -128), options, version=2))


def requantize(g: Any, random: Random) -> int:
    shape, s = (2, int(random.integers(1, 40))), scale(random)
    x = g.input(shape, s, zero(random))
    y = g.tensor(shape, s * float(random.uniform(0.4, 2.5)), zero(random))
    return int(g.op("QUANTIZE", [x], y, schema.QuantizeOptionsT(), version=2))


def relu(g: Any, random: Random) -> int:
    shape, s = (2, int(random.integers(1, 40))), scale(random)
    x = g.input(shape, s, zero(random))
    return int(g.op("RELU", [x], g.tensor(shape, s * float(random.uniform(0.4, 1.5)), zero(random)), version=2))


def relu6(g: Any, random: Random) -> int:
    shape, s, z = (2, int(random.integers(1, 40))), scale(random), zero(random)
    return int(g.op("RELU6", [g.input(shape, s, z)], g.tensor(shape, s, z), version=2))


def pad(g: Any, random: Random) -> int:
    shape = tuple(int(random.integers(1, 5)) for _ in range(4))
    amounts = random.integers(0, 3, (4, 2)).astype(np.int32)
    s, z = scale(random), zero(random)
    x = g.input(shape, s, z)
    y = g.tensor(tuple(int(n + a.sum()) for n, a in zip(shape, amounts, strict=True)), s, z)
    return int(g.op("PAD", [x, g.constant(amounts)], y, schema.PadOptionsT(), version=2))


def transpose(g: Any, random: Random) -> int:
    shape = tuple(int(random.integers(1, 6)) for _ in range(4))
    order = random.permutation(4).astype(np.int32)
    s, z = scale(random), zero(random)
    x = g.input(shape, s, z)
    y = g.tensor(tuple(shape[i] for i in order), s, z)
    return int(g.op("TRANSPOSE", [x, g.constant(order)], y, schema.TransposeOptionsT(), version=2))


def concatenation(g: Any, random: Random) -> int:
    shape = [int(random.integers(1, 5)) for _ in range(4)]
    axis = int(random.integers(0, 4))
    s, z = scale(random), zero(random)
    sizes = [int(random.integers(1, 4)) for _ in range(int(random.integers(2, 5)))]
    parts = [g.input([*shape[:axis], n, *shape[axis + 1 :]], s, z) for n in sizes]
    y = g.tensor([*shape[:axis], sum(sizes), *shape[axis + 1 :]], s, z)
    options = schema.ConcatenationOptionsT(axis=axis - 4 if random.integers(2) else axis)
    return int(g.op("CONCATENATION", parts, y, options, version=2))


def reshape(g: Any, random: Random) -> int:
    s, z = scale(random), zero(random)
    x = g.input((2, 3, 4), s, z)
    y = g.tensor((4, 6), s, z)
    return int(g.op("RESHAPE", [x, g.constant(np.array([4, 6], np.int32))], y, schema.ReshapeOptionsT(newShape=[4, 6])))


MAKERS = [
    conv_2d, depthwise_conv_2d, fully_connected, fully_connected_per_channel, average_pool_2d, max_pool_2d, mean,
    mean_of_the_same_scale, add, sub, mul, softmax, requantize, relu, relu6, pad, transpose, concatenation, reshape,
]  # fmt: skip


def hold(make: Any, seed: int, new_graph: Any, host: Any, oracle: Any) -> None:
    random = np.random.default_rng([seed, MAKERS.index(make)])
    g = new_graph()
    data = g.build(make(g, random))
    built = host(data)
    for trial in range(4):
        inputs = [random.integers(-128, 128, t.shape).astype(np.int8) for t in built.sources.inputs]
        if trial == 0:
            inputs = [np.full(t.shape, 127, np.int8) for t in built.sources.inputs]
        wanted = oracle(data, inputs)
        found = built.run(*inputs)
        assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True)), f"seed {seed}"


@pytest.mark.parametrize("make", MAKERS)
def test_an_operator_answers_bit_for_bit_as_tflite_micro(
    make: Callable[..., int], new_graph: Any, host: Any, oracle: Any
) -> None:
    for seed in range(1):
        hold(make, seed, new_graph, host, oracle)


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKERS)
def test_an_operator_answers_so_in_many_shapes(
    make: Callable[..., int], new_graph: Any, host: Any, oracle: Any
) -> None:
    for seed in range(1, 20):
        hold(make, seed, new_graph, host, oracle)
