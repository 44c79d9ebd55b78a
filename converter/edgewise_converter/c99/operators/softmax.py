"""SOFTMAX over the last dimension, in fixed point."""

from __future__ import annotations

from edgewise_converter.c99.fixed_point import softmax_scaling
from edgewise_converter.c99.graph import refuse
from edgewise_converter.c99.operators.emission import Emission, Site
from edgewise_converter.c99.storage import Sharing

_MAX_DEPTH = 4095
"""Exponentials are added up with 12 bits before the point."""


def softmax(site: Site) -> Emission:
    """The output has the scale 1/256 and the zero point -128, as the reference kernel fixes it."""
    x, y = site.activation(0), site.output
    site.expect(y.shape, x.shape, "output's shape")
    if abs(y.scale * 256 - 1) > 1e-3 or y.zero_point != -128:
        raise refuse(site.op, f"its output's scale is {y.scale:g}, not 1/256", "quantize the model again")
    if x.shape[-1] > _MAX_DEPTH:
        raise refuse(site.op, f"it goes over {x.shape[-1]} classes, and {_MAX_DEPTH} are the most", "leave it out")
    beta = float(site.op.option("beta", 1.0))
    if not beta > 0:
        raise refuse(site.op, f"its beta is {beta:g}", "export it with a positive one")
    factor, smallest = softmax_scaling(beta, float(x.scale))
    if not 0 <= factor.shift <= 31:
        raise refuse(site.op, f"its input's scale {x.scale:g} is out of range", "calibrate the model again")
    fields = {
        "rows": x.size // x.shape[-1],
        "depth": x.shape[-1],
        "multiplier": factor.value,
        "left_shift": factor.shift,
        "smallest": smallest,
    }
    return Emission(
        "softmax.h",
        (site.call("ew_softmax_rows", site.arg(0)),),
        ("ew_softmax", fields),
        sharing=Sharing((site.op.inputs[0],)),
    )
