"""TFLite float32 to float16 weights: half the size; engines widen them once, as they load the file.

Each constant that is worth it is stored as float16 behind a DEQUANTIZE, the form that TFLite's own
converter makes and XNNPACK folds.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from edgewise_converter.errors import PassError, UnchangedError
from edgewise_converter.libraries import need
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.tflite_catalogue import TfliteFloat16Config
from edgewise_converter.passes.tflite_quantizing import PASSIVE, plain
from edgewise_converter.tflite_file.operators import operators
from edgewise_converter.tflite_file.reading import read
from edgewise_converter.tflite_file.tensors import FLOAT32, is_constant, store, stored
from edgewise_converter.tflite_file.writing import write

_LEAST: Final = 256
"""Elements: for fewer the operator and tensor that are added take more than is saved."""
_VERSION: Final = 3
"""Of DEQUANTIZE, the first that reads float16."""


def apply(materials: Materials, before: Artifact, config: TfliteFloat16Config) -> Artifact:
    """Store the weights of a float file as float16.

    Raises:
        UnchangedError: no constant is large enough, or the file is quantized.
        PassError: the file or a name in the settings does not fit.
    """
    file = plain(before, materials.model)
    if unknown := sorted(set(config.keep_float) - set(file.names)):
        raise PassError(f"no layer is called {unknown[0]!r}; the file has {', '.join(file.names[:20])} ...")
    model = read(file.data, materials.model)
    kept = {
        index
        for name, operator in zip(file.names, file.operators, strict=True)
        if name in config.keep_float
        for index in operator.inputs
    }
    changed = sum(_narrow(model, place, kept if place == 0 else set()) for place in range(len(model.subgraphs)))
    if not changed:
        raise UnchangedError(
            f"tflite_float16 changed nothing in {materials.model}: it looks for float32 constants of at least {_LEAST} "
            "elements that fit into float16"
        )
    return Artifact(write(model), "tflite", "float16")


def layers(before: Artifact) -> tuple[str, ...]:
    """Operators that read constants which are narrowed, in the graph's order."""
    file = plain(before, "the model")
    model = read(file.data)
    tensors = model.subgraphs[0].tensors
    return tuple(
        name
        for name, operator in zip(file.names, file.operators, strict=True)
        if operator.name not in PASSIVE and any(i >= 0 and _is_worth_it(model, tensors[i]) for i in operator.inputs)
    )


def _is_worth_it(model: Any, tensor: Any) -> bool:
    if tensor.type != FLOAT32 or not is_constant(model, tensor):
        return False
    values = stored(model, tensor)
    with np.errstate(over="ignore"):
        return values.size >= _LEAST and bool(np.isfinite(values.astype(np.float16)).all())


def _narrow(model: Any, place: int, kept: set[int]) -> int:
    """Narrow a graph's constants; how many."""
    schema = need("ai_edge_litert.schema_py_generated")
    graph = model.subgraphs[place]
    used = sorted({i for op in operators(model) if op.graph == place for i in op.inputs if i >= 0} - kept)
    added = []
    for index in used:
        wide = graph.tensors[index]
        if not _is_worth_it(model, wide):
            continue
        narrow = schema.TensorT(shape=list(wide.shape), name=bytes(wide.name or b"") + b"_half")
        store(model, narrow, stored(model, wide).astype(np.float16))
        wide.buffer = 0
        graph.tensors.append(narrow)
        added.append(schema.OperatorT(opcodeIndex=_code(model), inputs=[len(graph.tensors) - 1], outputs=[index]))
    graph.operators = added + list(graph.operators)
    return len(added)


def _code(model: Any) -> int:
    schema = need("ai_edge_litert.schema_py_generated")
    number = schema.BuiltinOperator.DEQUANTIZE
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == number and code.version >= _VERSION:
            return index
    model.operatorCodes.append(schema.OperatorCodeT(deprecatedBuiltinCode=number, builtinCode=number, version=_VERSION))
    return len(model.operatorCodes) - 1
