"""Activations that stand as operators of their own, moved into the operator before them.

A RELU or RELU6 behind a convolution costs a pass over memory, and, quantized, a second rounding
with a range that no longer fits what is left of it. The values stay the same, to the bit.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from edgewise_converter.tflite_file.operators import operators

_ACTIVATIONS: Final = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
"""`ActivationFunctionType` by operator."""
_TAKES: Final = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "DIV", "AVERAGE_POOL_2D", "MAX_POOL_2D"}
)


def fuse_activations(model: Any) -> int:
    """Fuse where the value before the activation is used nowhere else; the model (`ModelT`) is changed.

    Returns:
        how many operators went.
    """
    found = list(operators(model))
    gone: set[tuple[int, int]] = set()
    for index, graph in enumerate(model.subgraphs):
        here = [operator for operator in found if operator.graph == index]
        uses = Counter(i for operator in here for i in operator.inputs)
        uses.update(int(i) for i in graph.outputs)
        makers = {i: operator for operator in here for i in operator.outputs}
        named = {
            int(entry.tensorIndex)
            for signature in model.signatureDefs or ()
            if signature.subgraphIndex == index
            for entry in (signature.outputs or ())
        }
        for operator in here:
            if operator.name not in _ACTIVATIONS or not operator.builtin:
                continue
            (source,), (result,) = operator.inputs, operator.outputs
            maker = makers.get(source)
            if maker is None or maker.name not in _TAKES or uses[source] != 1 or source in named:
                continue
            before, options = graph.operators[maker.position], graph.operators[maker.position].builtinOptions
            types = {graph.tensors[i].type for i in (source, result)}
            if options is None or options.fusedActivationFunction != 0 or types != {0}:
                continue
            options.fusedActivationFunction = _ACTIVATIONS[operator.name]
            before.outputs = [result]
            makers[result] = maker
            gone.add((index, operator.position))
    for index, graph in enumerate(model.subgraphs):
        graph.operators = [op for position, op in enumerate(graph.operators or ()) if (index, position) not in gone]
    return len(gone)
