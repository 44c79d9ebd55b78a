"""AVERAGE_POOL_2D, MAX_POOL_2D, MEAN."""

from __future__ import annotations

import math

import numpy as np

from edgewise_converter.c99.fixed_point import Multiplier
from edgewise_converter.c99.graph import refuse
from edgewise_converter.c99.operators.convolution import window
from edgewise_converter.c99.operators.emission import Emission, Site

_HEADER = "pool.h"
_MAX_REDUCED = 1 << 22
"""int8 values whose sum 32 bits hold."""


def average_pool_2d(site: Site) -> Emission:
    """The mean of what lies within the window, rounded half away from zero."""
    return _pool(site, "ew_average_pool_2d")


def max_pool_2d(site: Site) -> Emission:
    """The largest of what lies within the window."""
    return _pool(site, "ew_max_pool_2d")


def _pool(site: Site, kernel: str) -> Emission:
    x, y, op = site.activation(0), site.output, site.op
    site.same_quantization(0)
    site.expect((len(x.shape), len(y.shape)), (4, 4), "rank of input and output")
    taps = (int(op.option("filterHeight")), int(op.option("filterWidth")))
    strides = (int(op.option("strideH")), int(op.option("strideW")))
    sizes, pads = window(site, x.shape[1:3], taps, strides)
    site.expect(y.shape, (x.shape[0], *sizes, x.shape[3]), "output's shape")
    low, high = site.range()
    fields = {
        "batches": x.shape[0],
        "in_h": x.shape[1],
        "in_w": x.shape[2],
        "channels": x.shape[3],
        "out_h": sizes[0],
        "out_w": sizes[1],
        "filter_h": taps[0],
        "filter_w": taps[1],
        "stride_h": strides[0],
        "stride_w": strides[1],
        "pad_h": pads[0],
        "pad_w": pads[1],
        "low": low,
        "high": high,
    }
    return Emission(_HEADER, (site.call(kernel, site.arg(0)),), ("ew_pool", fields))


def mean(site: Site) -> Emission:
    """Over neighbouring dimensions; the factor 1/n goes into the rescaling."""
    x, y = site.activation(0), site.output
    axes = sorted({int(a) % len(x.shape) for a in site.constant(1, np.int32, "axes").ravel()})
    axes = [a for a in axes if x.shape[a] != 1] or axes[:1]
    if not axes or axes != list(range(axes[0], axes[-1] + 1)):
        raise refuse(site.op, f"it reduces the dimensions {axes}, which are no neighbours", "transpose before it")
    outer, inner = math.prod(x.shape[: axes[0]]), math.prod(x.shape[axes[-1] + 1 :])
    reduced = math.prod(x.shape[a] for a in axes)
    site.expect(y.size, outer * inner, "output's size")
    if reduced > _MAX_REDUCED:
        raise refuse(site.op, f"it adds up {reduced} values, and {_MAX_REDUCED} are the most", "take the mean in steps")
    factor = _shared(site.factor(float(x.scale) / float(y.scale)), reduced)
    fields = {
        "outer": outer,
        "reduced": reduced,
        "inner": inner,
        "in_zero": x.zero_point,
        "out_zero": y.zero_point,
        "multiplier": factor.value,
        "shift": factor.shift,
    }
    return Emission(_HEADER, (site.call("ew_mean_axis", site.arg(0)),), ("ew_mean", fields))


def _shared(factor: Multiplier, count: int) -> Multiplier:
    """The factor divided by a count, with as many bits as 64 allow."""
    shift = min(count.bit_length() - 1, 32, 31 + factor.shift)
    return Multiplier((factor.value << shift) // count, factor.shift - shift)
