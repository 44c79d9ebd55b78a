"""RESHAPE and its kin, PAD, TRANSPOSE, CONCATENATION: bytes are moved, or not even that."""

from __future__ import annotations

import math

import numpy as np

from edgewise_converter.c99.graph import refuse
from edgewise_converter.c99.operators.emission import Emission, Site, Value, four, steps
from edgewise_converter.c99.storage import Sharing

_HEADER = "move.h"


def view(site: Site) -> Emission:
    """RESHAPE, SQUEEZE, EXPAND_DIMS: the same bytes by another shape."""
    x = site.activation(0)
    site.same_quantization(0)
    site.expect(site.output.size, x.size, "output's size")
    return _same_bytes(site)


def _same_bytes(site: Site) -> Emission:
    """No code at all; of a constant, which lies in flash, a copy."""
    x = site.activation(0)
    if x.data is not None:
        return Emission(_HEADER, (f"ew_place({site.arg(0)}, 1, {x.size}, {x.size}, {site.out});",))
    return Emission(_HEADER, (), sharing=Sharing((site.op.inputs[0],), view=True))


def pad(site: Site) -> Emission:
    """PAD fills with what stands for zero, PADV2 with a constant."""
    x, y = site.activation(0), site.output
    site.same_quantization(0)
    amounts = site.constant(1, np.int32, "paddings")
    site.expect(amounts.shape, (len(x.shape), 2), "paddings' shape")
    if amounts.min(initial=0) < 0:
        raise refuse(site.op, "a padding is negative", "export the model again")
    value = y.zero_point
    if site.op.kind == "PADV2":
        site.same_quantization(2)
        value = int(site.constant(2, np.int8, "value").ravel()[0])
    site.expect(y.shape, tuple(int(b + s + a) for s, (b, a) in zip(x.shape, amounts, strict=True)), "output's shape")
    before = (0,) * (4 - len(x.shape)) + tuple(int(b) for b, _ in amounts)
    fields: dict[str, Value] = {
        "size": four(x.shape, site),
        "before": before,
        "out": four(y.shape, site),
        "value": value,
    }
    return Emission(_HEADER, (site.call("ew_pad_all", site.arg(0)),), ("ew_pad", fields))


def transpose(site: Site) -> Emission:
    """Any order of up to four dimensions; a view where only dimensions of 1 move."""
    x, y = site.activation(0), site.output
    site.same_quantization(0)
    order = [int(i) for i in site.constant(1, np.int32, "order").ravel()]
    if sorted(order) != list(range(len(x.shape))):
        raise refuse(site.op, f"its order {order} is none", "export the model again")
    site.expect(y.shape, tuple(x.shape[i] for i in order), "output's shape")
    if [i for i in order if x.shape[i] > 1] == [i for i in range(len(order)) if x.shape[i] > 1]:
        return _same_bytes(site)
    size = four(y.shape, site)
    along = steps(x.shape)
    fields = {"size": size, "step": (0,) * (4 - len(order)) + tuple(along[i] for i in order)}
    return Emission(_HEADER, (site.call("ew_transpose_all", site.arg(0)),), ("ew_transpose", fields))


def concatenation(site: Site) -> Emission:
    """Inputs are put side by side along an axis; all have the output's scale."""
    y = site.output
    count = len(site.op.inputs)
    site.same_quantization(*range(count))
    axis = int(site.op.option("axis")) % len(y.shape)
    if int(site.op.option("fusedActivationFunction")) != 0:
        raise refuse(site.op, "it has an activation", "put the activation behind it")
    outer, stride = math.prod(y.shape[:axis]), math.prod(y.shape[axis:])
    calls, at = [], 0
    for place in range(count):
        shape = site.activation(place).shape
        site.expect((*shape[:axis], *shape[axis + 1 :]), (*y.shape[:axis], *y.shape[axis + 1 :]), "inputs' shape")
        run = math.prod(shape[axis:])
        calls.append(f"ew_place({site.arg(place)}, {outer}, {run}, {stride}, {site.out} + {at});")
        at += run
    site.expect(at, stride, "output's size")
    return Emission(_HEADER, tuple(calls))
