"""How wide a file computes: the precision that its operators show. Pure."""

from __future__ import annotations

from typing import Any, Final

from edgewise_profiles.schema import Precision

from edgewise_converter.tflite_file.compat import hybrid
from edgewise_converter.tflite_file.operators import Operator, operators
from edgewise_converter.tflite_file.tensors import FLOAT16, INT8, is_constant

_INT16: Final = 7
_INT4: Final = 17
_UINT8: Final = 3


def precision_of(model: Any) -> Precision:
    """The narrowest kind of arithmetic in a model (`ModelT`).

    `int8` where an operator makes int8 (or uint8) with a scale, `int16x8` where it makes int16 so;
    where weights alone are narrow, `int4`, `int8-dynamic` or `float16`; else `float32`.
    """
    found: set[Precision] = set()
    for operator in operators(model):
        found.update(_of(model, operator))
    for wanted in ("int8", "int16x8", "int4", "int8-dynamic", "float16"):
        if wanted in found:
            return wanted
    return "float32"


def _of(model: Any, operator: Operator) -> set[Precision]:
    tensors = model.subgraphs[operator.graph].tensors
    found: set[Precision] = set()
    if operator.name != "QUANTIZE":
        for index in operator.outputs:
            if index >= 0 and _scaled(tensors[index]):
                if tensors[index].type in (INT8, _UINT8):
                    found.add("int8")
                elif tensors[index].type == _INT16:
                    found.add("int16x8")
    for index in operator.inputs:
        if index >= 0 and is_constant(model, tensors[index]):
            if tensors[index].type == FLOAT16:
                found.add("float16")
            elif tensors[index].type == _INT4:
                found.add("int4")
            elif operator.name == "DEQUANTIZE" and tensors[index].type == INT8:
                found.add("int8-dynamic")
    if hybrid(model, operator):
        found.add("int8-dynamic")
    return found


def _scaled(tensor: Any) -> bool:
    return tensor.quantization is not None and bool(tensor.quantization.scale)
