"""ADD, SUB, MUL, QUANTIZE from int8 to int8, RELU, RELU6."""

from __future__ import annotations

from edgewise_converter.c99.fixed_point import Multiplier, activation_range, multiplier_of
from edgewise_converter.c99.graph import refuse
from edgewise_converter.c99.operators.emission import Emission, Site, Value, four, steps
from edgewise_converter.c99.storage import Sharing

_HEADER = "elementwise.h"
_HEADROOM = 20
"""Bits by which sums of int8 are widened, as the reference kernel does."""
_NONE = Multiplier(0, 0)
_RELU = 1
_RELU6 = 3


def add(site: Site) -> Emission:
    """Both inputs are brought to twice the larger scale, with 20 bits of headroom."""
    return _sum(site, "ew_add")


def sub(site: Site) -> Emission:
    """As `add`."""
    return _sum(site, "ew_sub")


def _sum(site: Site, kernel: str) -> Emission:
    scales = float(site.activation(0).scale), float(site.activation(1).scale)
    widest = 2 * max(scales)
    result = multiplier_of(widest / ((1 << _HEADROOM) * float(site.output.scale)))
    if result.shift > 0:
        raise refuse(site.op, "its output's scale is too small for its inputs'", "calibrate the model again")
    factors = (multiplier_of(scales[0] / widest), multiplier_of(scales[1] / widest), result)
    return _binary(site, kernel, factors, _HEADROOM)


def mul(site: Site) -> Emission:
    """The product of the scales goes into one factor."""
    scales = float(site.activation(0).scale), float(site.activation(1).scale)
    factor = site.factor(scales[0] * scales[1] / float(site.output.scale))
    return _binary(site, "ew_mul", (_NONE, _NONE, factor), 0)


def _binary(site: Site, kernel: str, factors: tuple[Multiplier, Multiplier, Multiplier], left_shift: int) -> Emission:
    x1, x2, y = site.activation(0), site.activation(1), site.output
    size = four(y.shape, site)
    shapes = [four(x.shape, site) for x in (x1, x2)]
    for shape in shapes:
        if any(s not in (1, whole) for s, whole in zip(shape, size, strict=True)):
            raise refuse(site.op, f"{list(shape)} does not stretch to {list(size)}", "export the model again")
    site.expect(tuple(max(pair) for pair in zip(*shapes, strict=True)), size, "output's shape")
    strides = [tuple(0 if n == 1 else step for n, step in zip(shape, steps(shape), strict=True)) for shape in shapes]
    low, high = site.range()
    fields: dict[str, Value] = {
        "size": size,
        "step1": strides[0],
        "step2": strides[1],
        "offset1": -x1.zero_point,
        "offset2": -x2.zero_point,
        "out_offset": y.zero_point,
        "low": low,
        "high": high,
        "multiplier1": factors[0].value,
        "shift1": factors[0].shift,
        "multiplier2": factors[1].value,
        "shift2": factors[1].shift,
        "out_multiplier": factors[2].value,
        "out_shift": factors[2].shift,
        "left_shift": left_shift,
    }
    # In place only where the input is walked through in the output's own order.
    whole = tuple(i for i, shape in zip(site.op.inputs, shapes, strict=True) if shape == size)
    return Emission(
        _HEADER, (site.call(kernel, site.arg(0), site.arg(1)),), ("ew_binary", fields), sharing=Sharing(whole)
    )


def requantize(site: Site) -> Emission:
    """int8 of one scale to int8 of another."""
    return _requantize(site, (-128, 127))


def relu(site: Site) -> Emission:
    """A RELU that stands alone, rescaled."""
    return _requantize(site, activation_range(_RELU, site.output.scale, site.output.zero_point))


def relu6(site: Site) -> Emission:
    """A RELU6 that stands alone; the reference kernel clips, and rescales nothing."""
    site.same_quantization(0)
    return _requantize(site, activation_range(_RELU6, site.output.scale, site.output.zero_point))


def _requantize(site: Site, limits: tuple[int, int]) -> Emission:
    x, y = site.activation(0), site.output
    site.expect(y.shape, x.shape, "output's shape")
    factor = site.factor(float(x.scale) / float(y.scale))
    fields = {
        "count": x.size,
        "in_zero": x.zero_point,
        "out_zero": y.zero_point,
        "multiplier": factor.value,
        "shift": factor.shift,
        "low": limits[0],
        "high": limits[1],
    }
    return Emission(
        _HEADER,
        (site.call("ew_requantize_all", site.arg(0)),),
        ("ew_requantize", fields),
        sharing=Sharing((site.op.inputs[0],)),
    )
