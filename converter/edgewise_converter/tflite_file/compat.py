"""Whether an old engine runs a file, and runs it right: tflite-runtime 2.14, the last one for 32-bit Arm.

It reads files of TensorFlow 2.14. What is newer it refuses; on weights of int8 or int4 behind float
activations it answers wrong without an error, so that such a file must not reach it.
"""

from __future__ import annotations

from typing import Any, Final

from edgewise_converter.errors import ModelFileError
from edgewise_converter.tflite_file.operators import BUILT_IN_CUSTOM, Operator, operators
from edgewise_converter.tflite_file.reading import read
from edgewise_converter.tflite_file.tensors import FLOAT32, INT8, is_constant
from edgewise_converter.tflite_file.tflite_runtime_versions import VERSIONS

_LATER: Final = {17: "int4", 18: "bfloat16", 19: "int2", 20: "uint4", 21: "float8", 22: "float8"}
"""Types of tensors that came after it, or that it computes wrong."""
_MOST: Final = 2
"""Troubles named in one message."""


def check_tflite_runtime(data: bytes, name: str) -> None:
    """Hold a file against tflite-runtime 2.14.

    Raises:
        ModelFileError: an operator in it is unknown there, too new, or computed wrong; it is named with its
            place and what to do.
    """
    model = read(data, name)
    found = [trouble for operator in operators(model) if (trouble := _trouble(model, operator))]
    if found:
        more = f"; {len(found) - _MOST} more like these" if len(found) > _MOST else ""
        raise ModelFileError(f"tflite-runtime 2.14 cannot run {name}: {'; '.join(found[:_MOST])}{more}")


def _trouble(model: Any, operator: Operator) -> str | None:
    if not operator.builtin and operator.name in BUILT_IN_CUSTOM:
        return None
    if not operator.builtin:
        what = "one of TensorFlow's own (SELECT_TF_OPS)" if operator.flex else "a custom operator"
        return f"{operator.place} is {what}, which it does not have: export the model with built-in operators alone"
    newest = VERSIONS.get(operator.name)
    if newest is None:
        return f"{operator.place} is not known to it: replace it in the model, or take a board with LiteRT"
    if operator.version > newest:
        return (
            f"{operator.place} is of version {operator.version}, it reads up to {newest}: "
            "export the model as float32 or full int8, without newer forms of the operator"
        )
    tensors = model.subgraphs[operator.graph].tensors
    for index in (*operator.inputs, *operator.outputs):
        if index >= 0 and tensors[index].type in _LATER:
            kind = _LATER[tensors[index].type]
            return f"{operator.place} works on {kind}, which it computes wrong or not at all: use float32 or full int8"
    if hybrid(model, operator):
        return (
            f"{operator.place} has int8 weights behind float activations (dynamic range), which it computes wrong "
            "without an error: use the passes tflite_int8 or tflite_float32"
        )
    return None


def hybrid(model: Any, operator: Operator) -> bool:
    """Whether an operator of a model (`ModelT`) computes in float with int8 constants as weights."""
    if operator.name == "DEQUANTIZE":
        return False
    tensors = model.subgraphs[operator.graph].tensors
    made = [tensors[i].type for i in operator.outputs if i >= 0]
    constants = [tensors[i] for i in operator.inputs if i >= 0 and is_constant(model, tensors[i])]
    narrow = [t for t in constants if t.type == INT8 and t.quantization is not None and t.quantization.scale]
    return bool(made) and all(t == FLOAT32 for t in made) and bool(narrow)
