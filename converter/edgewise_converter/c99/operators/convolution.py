"""CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.c99.graph import MAX_TENSOR_ELEMENTS, Tensor, refuse
from edgewise_converter.c99.operators.emission import Emission, Site

_HEADER = "conv.h"
_SAME = 0


def conv_2d(site: Site) -> Emission:
    """Weights are (out, height, width, in / groups)."""
    weights = site.constant(1, np.int8, "filter")
    site.expect(weights.ndim, 4, "filter's rank")
    channels = site.activation(0).shape[-1]
    out_c, _, _, filter_c = weights.shape
    if channels % filter_c or out_c % (channels // filter_c):
        raise refuse(site.op, f"{channels} channels do not go into filters of {filter_c}", "export it without groups")
    return _convolution(site, weights, "ew_conv_2d", out_c=out_c, filter_c=filter_c, axis=0)


def depthwise_conv_2d(site: Site) -> Emission:
    """Weights are (1, height, width, out); out is the depth multiplier times in."""
    weights = site.constant(1, np.int8, "filter")
    site.expect(weights.ndim, 4, "filter's rank")
    out_c, channels = weights.shape[3], site.activation(0).shape[-1]
    site.expect((weights.shape[0], out_c % channels), (1, 0), "filter's shape")
    return _convolution(site, weights, "ew_depthwise_conv_2d", out_c=out_c, filter_c=out_c // channels, axis=3)


def _convolution(site: Site, weights: NDArray[Any], kernel: str, *, out_c: int, filter_c: int, axis: int) -> Emission:
    x, y, op = site.activation(0), site.output, site.op
    site.expect((len(x.shape), len(y.shape)), (4, 4), "rank of input and output")
    strides = (int(op.option("strideH", 1)), int(op.option("strideW", 1)))
    dilations = (int(op.option("dilationHFactor", 1)), int(op.option("dilationWFactor", 1)))
    sizes, pads = window(site, x.shape[1:3], weights.shape[1:3], strides, dilations)
    site.expect(y.shape, (x.shape[0], *sizes, out_c), "output's shape")
    low, high = site.range()
    fields = {
        "batches": x.shape[0],
        "in_h": x.shape[1],
        "in_w": x.shape[2],
        "in_c": x.shape[3],
        "out_h": sizes[0],
        "out_w": sizes[1],
        "out_c": out_c,
        "filter_h": weights.shape[1],
        "filter_w": weights.shape[2],
        "filter_c": filter_c,
        "stride_h": strides[0],
        "stride_w": strides[1],
        "dilation_h": dilations[0],
        "dilation_w": dilations[1],
        "pad_h": pads[0],
        "pad_w": pads[1],
        "in_offset": -x.zero_point,
        "out_offset": y.zero_point,
        "low": low,
        "high": high,
    }
    factors = [float(x.scale) * s / float(y.scale) for s in _weight_scales(site, out_c, axis)]
    return Emission(
        _HEADER,
        (site.call(kernel, site.arg(0), *_CONSTANTS),),
        ("ew_conv", fields),
        _constants(site, weights, out_c, factors),
    )


def fully_connected(site: Site) -> Emission:
    """Weights are (out, in); the input is rows of `in`."""
    weights = site.constant(1, np.int8, "weights")
    if int(site.op.option("weightsFormat")) != 0:
        raise refuse(site.op, "its weights are shuffled", "export the model with plain weights")
    site.expect(weights.ndim, 2, "weights' rank")
    x, y = site.activation(0), site.output
    out_c, in_c = weights.shape
    rows = x.size // in_c
    site.expect((rows * in_c, rows * out_c), (x.size, y.size), "input's and output's size")
    scales = _weight_scales(site, out_c, 0)
    tensor = site.graph.tensors[site.op.inputs[1]]
    if len(tensor.scales) == 1:
        # One scale: the reference kernel multiplies the two scales in float32.
        with np.errstate(over="ignore"):
            product = float(np.float32(x.scale) * np.float32(tensor.scale))
        factors = [product / float(y.scale)] * out_c
    else:
        factors = [float(x.scale) * s / float(y.scale) for s in scales]
    low, high = site.range()
    fields = {
        "rows": rows,
        "in_c": in_c,
        "out_c": out_c,
        "in_offset": -x.zero_point,
        "out_offset": y.zero_point,
        "low": low,
        "high": high,
    }
    return Emission(
        _HEADER,
        (site.call("ew_fully_connected", site.arg(0), *_CONSTANTS),),
        ("ew_dense", fields),
        _constants(site, weights, out_c, factors),
    )


_CONSTANTS = ("{c.w}", "{c.b}", "{c.m}", "{c.s}")


def _constants(site: Site, weights: NDArray[Any], out_c: int, factors: list[float]) -> dict[str, NDArray[Any]]:
    bias = np.zeros(out_c, np.int32) if site.optional(2) is None else site.constant(2, np.int32, "bias")
    site.expect(bias.size, out_c, "bias's length")
    multipliers = [site.factor(factor) for factor in factors]
    return {
        "w": weights,
        "b": bias,
        "m": np.array([m.value for m in multipliers], np.int32),
        "s": np.array([m.shift for m in multipliers], np.int8),
    }


def _weight_scales(site: Site, out_c: int, axis: int) -> tuple[float, ...]:
    tensor: Tensor = site.graph.tensors[site.op.inputs[1]]
    if len(tensor.scales) not in (1, out_c) or (len(tensor.scales) > 1 and tensor.axis != axis):
        raise refuse(
            site.op, f"its weights have {len(tensor.scales)} scales for {out_c} channels", "quantize them per channel"
        )
    if any(tensor.zero_points) or not all(math.isfinite(s) and s > 0 for s in tensor.scales):
        raise refuse(site.op, "its weights have a zero point or no positive scales", "quantize them symmetrically")
    return tensor.scales * (out_c if len(tensor.scales) == 1 else 1)


def window(
    site: Site,
    size: tuple[int, ...],
    taps: tuple[int, ...],
    strides: tuple[int, int],
    dilations: tuple[int, int] = (1, 1),
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Output size and padding in front, height and width, of a filter that slides over an input."""
    same = int(site.op.option("padding")) == _SAME
    out, pads = [], []
    for extent, count, stride, dilation in zip(size, taps, strides, dilations, strict=True):
        reach = (count - 1) * dilation + 1
        if min(count, stride, dilation) < 1 or max(reach, stride) > MAX_TENSOR_ELEMENTS:
            told = f"its filter is {count}, its stride {stride}, its dilation {dilation}"
            raise refuse(site.op, told, "each must be positive, and no more than a tensor has")
        steps = -(-extent // stride) if same else (extent - reach) // stride + 1
        if steps < 1:
            raise refuse(site.op, f"its filter of {reach} does not go into {extent}", "export the model again")
        out.append(steps)
        pads.append(max(0, (steps - 1) * stride + reach - extent) // 2)
    return (out[0], out[1]), (pads[0], pads[1])
