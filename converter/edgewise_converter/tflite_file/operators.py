"""What operators a file holds, where, and which of them a plain engine does not have. Pure."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from edgewise_converter.libraries import need

_CUSTOM: Final = "CUSTOM"
_FLEX: Final = "Flex"
BUILT_IN_CUSTOM: Final = frozenset({"TFLite_Detection_PostProcess", "AudioSpectrogram", "Mfcc", "NumericVerify"})
"""Custom operators that every LiteRT and tflite-runtime registers."""
_SHOWN: Final = 80
_STATE: Final = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"})


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of a graph."""

    graph: int
    position: int
    """In its graph, from 0."""
    name: str
    """Of the schema, as `CONV_2D`; a custom one's own."""
    version: int
    builtin: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    """Tensors of its graph; -1 for an optional one that is not there."""
    layer: str
    """The name of the first tensor that it makes."""

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        graph = f" of graph {self.graph}" if self.graph else ""
        layer = self.layer if len(self.layer) <= _SHOWN else self.layer[:_SHOWN] + "..."
        return f"{self.name} (operator {self.position}{graph}, {layer or 'without a name'!r})"

    @property
    def flex(self) -> bool:
        """Whether it is one of TensorFlow's own (SELECT_TF_OPS)."""
        return not self.builtin and self.name.startswith(_FLEX)


def operators(model: Any) -> Iterator[Operator]:
    """All operators of a model (`ModelT`), graph by graph, in the order in which they run."""
    names = builtin_names()
    for graph_index, graph in enumerate(model.subgraphs):
        for position, operator in enumerate(graph.operators or ()):
            code = model.operatorCodes[operator.opcodeIndex]
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            name = names.get(number, f"builtin {number}")
            outputs = tuple(int(i) for i in (() if operator.outputs is None else operator.outputs))
            made = [graph.tensors[i].name for i in outputs if i >= 0]
            yield Operator(
                graph=graph_index,
                position=position,
                name=_text(code.customCode) if name == _CUSTOM else name,
                version=int(code.version),
                builtin=name != _CUSTOM,
                inputs=tuple(int(i) for i in (() if operator.inputs is None else operator.inputs)),
                outputs=outputs,
                layer=_text(made[0]) if made else "",
            )


def foreign(model: Any) -> tuple[Operator, ...]:
    """Operators that are not built into LiteRT: custom ones, and TensorFlow's (Flex)."""
    return tuple(op for op in operators(model) if not op.builtin and op.name not in BUILT_IN_CUSTOM)


def is_stateful(model: Any) -> bool:
    """Whether an answer depends on earlier requests: variables, or tensors that are kept."""
    kept = any(tensor.isVariable for graph in model.subgraphs for tensor in graph.tensors or ())
    return kept or any(operator.name in _STATE for operator in operators(model))


@functools.cache
def builtin_names() -> dict[int, str]:
    """Names of the schema's operators by their numbers."""
    numbers = vars(need("ai_edge_litert.schema_py_generated").BuiltinOperator)
    return {number: name for name, number in numbers.items() if isinstance(number, int)}


def _text(name: Any) -> str:
    return bytes(name).decode("utf-8", "replace") if name else ""
