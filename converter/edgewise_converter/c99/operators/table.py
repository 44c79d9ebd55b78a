"""Which operators become C, and by what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edgewise_converter.c99.graph import Graph, Op, refuse
from edgewise_converter.c99.operators import convolution, elementwise, moving, pooling, softmax
from edgewise_converter.c99.operators.emission import Emission, Site

OPERATORS: Final[dict[str, Callable[[Site], Emission]]] = {
    "ADD": elementwise.add,
    "AVERAGE_POOL_2D": pooling.average_pool_2d,
    "CONCATENATION": moving.concatenation,
    "CONV_2D": convolution.conv_2d,
    "DEPTHWISE_CONV_2D": convolution.depthwise_conv_2d,
    "EXPAND_DIMS": moving.view,
    "FULLY_CONNECTED": convolution.fully_connected,
    "MAX_POOL_2D": pooling.max_pool_2d,
    "MEAN": pooling.mean,
    "MUL": elementwise.mul,
    "PAD": moving.pad,
    "PADV2": moving.pad,
    "QUANTIZE": elementwise.requantize,
    "RELU": elementwise.relu,
    "RELU6": elementwise.relu6,
    "RESHAPE": moving.view,
    "SOFTMAX": softmax.softmax,
    "SQUEEZE": moving.view,
    "SUB": elementwise.sub,
    "TRANSPOSE": moving.transpose,
}


def emit(graph: Graph, op: Op) -> Emission:
    """An operator's C.

    Raises:
        UnsupportedModelError: it has none; the message names the operator, its place, and what to do.
    """
    found = OPERATORS.get(op.kind)
    if found is None:
        raise refuse(
            op,
            "there is no kernel for it",
            f"replace it in the model; there are {', '.join(sorted(OPERATORS))}",
        )
    return found(Site(graph, op))
