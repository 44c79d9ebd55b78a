"""Outputs of a TFLite file that its own operators read too, kept out of the quantizer's sight.

ai-edge-quantizer narrows such a tensor, and then lets the wrong one of the two uses have the widened values: an
operator reads float32 where it needs integers, or the signature goes on naming the tensor before. So these outputs
are taken off the file that it gets, and put back on what it makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from edgewise_converter.libraries import need
from edgewise_converter.tflite_file.operators import operators
from edgewise_converter.tflite_file.tensors import FLOAT32, INT8

_VERSIONS: Final = {INT8: 2}
_INT16_VERSION: Final = 3
"""Of DEQUANTIZE, by what it reads."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Outputs of a signed file's main graph, before some of them were taken off."""

    order: tuple[int, ...]
    """Tensors, in the graph's order."""
    names: tuple[tuple[bytes, int], ...]
    """Names of them, in the signature's order."""
    off: frozenset[int]
    """What was taken off."""


def take_off(model: Any) -> Outputs:
    """Take the outputs that an operator reads off a signed model (`ModelT`), which is changed; one at least stays."""
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    order = tuple(int(index) for index in graph.outputs)
    names = tuple((bytes(entry.name), int(entry.tensorIndex)) for entry in signature.outputs)
    read = {index for operator in operators(model) if operator.graph == 0 for index in operator.inputs}
    off = frozenset(order) & read
    if off == frozenset(order):
        off = frozenset()
    graph.outputs = [index for index in order if index not in off]
    signature.outputs = [entry for entry in signature.outputs if int(entry.tensorIndex) not in off]
    return Outputs(order, names, off)


def put_back(model: Any, outputs: Outputs, *, floating: bool) -> None:
    """Give what the quantizer made of such a model (`ModelT`) its outputs again; it is changed.

    Args:
        floating: outputs of real numbers are float32; else they may be what the tensor became.
    """
    if not outputs.off:
        return
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    # The quantizer keeps the order of outputs, and the index of a tensor that was there.
    rest = iter([int(index) for index in graph.outputs])
    place = {i: _widened(model, i) if floating else i for i in sorted(outputs.off)}
    place |= {i: next(rest) for i in outputs.order if i not in outputs.off}
    graph.outputs = [place[i] for i in outputs.order]
    schema = need("ai_edge_litert.schema_py_generated")
    signature.outputs = [schema.TensorMapT(name=name, tensorIndex=place[i]) for name, i in outputs.names]


def _widened(model: Any, index: int) -> int:
    """The tensor that holds a tensor's values as float32: itself, one that is there, or a new one."""
    schema = need("ai_edge_litert.schema_py_generated")
    graph = model.subgraphs[0]
    tensor = graph.tensors[index]
    if tensor.type == FLOAT32 or tensor.quantization is None or not tensor.quantization.scale:
        return index
    for operator in operators(model):
        if operator.graph == 0 and operator.name == "DEQUANTIZE" and operator.inputs == (index,):
            return operator.outputs[0]
    number = schema.BuiltinOperator.DEQUANTIZE
    version = _VERSIONS.get(tensor.type, _INT16_VERSION)
    model.operatorCodes.append(schema.OperatorCodeT(deprecatedBuiltinCode=number, builtinCode=number, version=version))
    graph.tensors.append(
        schema.TensorT(
            name=bytes(tensor.name or b"") + b"_widened",
            shape=list(tensor.shape),
            shapeSignature=None if tensor.shapeSignature is None else list(tensor.shapeSignature),
            type=FLOAT32,
            buffer=0,
        )
    )
    graph.operators.append(
        schema.OperatorT(opcodeIndex=len(model.operatorCodes) - 1, inputs=[index], outputs=[len(graph.tensors) - 1])
    )
    return len(graph.tensors) - 1
