"""Operators on which some inputs end the process, on a device as here. Pure."""

from __future__ import annotations

from typing import Any, Final

from edgewise_converter.tflite_file.operators import Operator, operators
from edgewise_converter.tflite_file.tensors import is_constant, stored

_WIDE: Final = (2, 4)
"""int32 and int64, in whose width processors divide: the least number by -1 traps. By 0, LiteRT refuses."""


def trapping(model: Any) -> Operator | None:
    """The first remainder of whole numbers in a model (`ModelT`) whose divisor may be -1; None where there is none."""
    return next((op for op in operators(model) if op.name == "FLOOR_MOD" and _may_trap(model, op)), None)


def _may_trap(model: Any, operator: Operator) -> bool:
    graph = model.subgraphs[operator.graph]
    if len(operator.inputs) != 2 or (index := operator.inputs[1]) < 0:
        return True
    divisor = graph.tensors[index]
    if divisor.type not in _WIDE:
        return False
    made = index in {int(i) for i in graph.inputs} or any(
        index in {int(i) for i in (() if other.outputs is None else other.outputs)} for other in graph.operators
    )
    if made or not is_constant(model, divisor) or divisor.sparsity is not None:
        return True
    return bool((stored(model, divisor) == -1).any())
