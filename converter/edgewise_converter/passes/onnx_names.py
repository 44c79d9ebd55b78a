"""Short names for what only the graph itself reads: in a small quantized file names are half of the bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from edgewise_converter.passes.onnx_scopes import inner_graphs

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def shorten(model: Any) -> Any:
    """Rename every tensor but the model's inputs and outputs, and leave out the names of nodes.

    Names are given in the graph's order, each once in the whole model, so that equal graphs get
    equal names.

    Args:
        model: `onnx.ModelProto`; it is changed.

    Returns:
        The model.
    """
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    _rename(model.graph, {name: name for name in kept}, _fresh(kept))
    return model


def _fresh(taken: set[str]) -> Iterator[str]:
    number = 0
    while True:
        name, rest = "", number
        while True:
            name, rest = _DIGITS[rest % 36] + name, rest // 36
            if not rest:
                break
        number += 1
        if name not in taken:
            yield name


def _rename(graph: Any, around: dict[str, str], fresh: Iterator[str]) -> None:
    """Rename within a graph, where `around` tells the new names of what it sees from outside."""
    names = dict(around)
    for tensor in graph.initializer:
        names[tensor.name] = _known(tensor.name, around, fresh)
        tensor.name = names[tensor.name]
    for value in graph.input:
        if value.name not in around:
            value.name = names.setdefault(value.name, next(fresh))
    for node in graph.node:
        for name in node.output:
            if name and (name not in around or around[name] != name):
                names[name] = next(fresh)
    for node in graph.node:
        node.name = ""
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
        for place, name in enumerate(node.output):
            node.output[place] = names.get(name, name)
        for inner in inner_graphs(node):
            _rename(inner, names, fresh)
    for value in graph.output:
        value.name = names.get(value.name, value.name)


def _known(name: str, around: dict[str, str], fresh: Iterator[str]) -> str:
    """A constant's new name; one that is an input or output of the model keeps its own."""
    return name if around.get(name) == name else next(fresh)
