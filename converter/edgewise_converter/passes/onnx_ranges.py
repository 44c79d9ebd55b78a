"""Ranges of activations: what values calibration requests give to tensors, also inside of branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import PassError
from edgewise_converter.libraries import need
from edgewise_converter.passes.onnx_answers import Graph
from edgewise_converter.passes.onnx_scopes import inner_graphs, scopes
from edgewise_converter.requests import Requests

Method = Literal["minmax", "percentile", "entropy"]
Place = tuple[int, str]
"""A tensor: the number of its scope in the order of `scopes`, and its name."""
_BINS: Final = 2048
_STRIDE: Final = 16
_MAX_BYTES: Final = 2**28
"""Of watched values at once."""


@dataclass(frozen=True, slots=True)
class Range:
    """The smallest and the largest value that is told from others."""

    low: float
    high: float


def measure(
    model: Any, places: Sequence[Place], requests: Requests, batch: int, method: Method, percentile: float
) -> dict[Place, Range]:
    """Run a model on calibration requests and watch tensors.

    Tensors that never get a value (in a branch that is not taken) are missing in the answer.

    Args:
        model: `onnx.ModelProto`, float32; it is left as it is.
        places: float tensors; those in the bodies of loops cannot be watched and are missing too.
        requests: all are run.
        batch: samples at once, at most.
        method: how a range comes from the values.
        percentile: per cent of the values within the range, for the method of that name.

    Raises:
        PassError: the model does not run, or gives NaN or infinity.
    """
    watched = _watch(model, places)
    graph = Graph(watched.data, "the graph to calibrate")
    first = next(graph.calls(requests, 1))
    volume = sum(array.nbytes for array in graph.run(first, watched.names).values())
    batch = max(1, min(batch, _MAX_BYTES // max(volume, 1)))
    found: dict[str, Range] = {}

    def widen(name: str, values: NDArray[Any]) -> None:
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise PassError(f"the tensor {watched.called[name]!r} gets NaN or infinity from a calibration request")
        old = found.get(name, Range(low, high))
        found[name] = Range(min(low, old.low), max(high, old.high))

    _run(graph, watched.names, requests, batch, widen)
    if method != "minmax":
        counts = {name: np.zeros(_BINS, np.int64) for name in found}

        def count(name: str, values: NDArray[Any]) -> None:
            low, high = _span(found[name], method)
            values = np.abs(values) if method == "entropy" else values
            counts[name] += np.histogram(values, bins=_BINS, range=(low, high))[0]

        _run(graph, watched.names, requests, batch, count)
        for name, histogram in counts.items():
            if method == "percentile":
                found[name] = by_percentile(histogram, found[name], percentile)
            else:
                found[name] = by_entropy(histogram, found[name])
    return {watched.places[name]: r for name, r in found.items()}


def by_percentile(histogram: NDArray[np.int64], whole: Range, percentile: float) -> Range:
    """The range without an equal share at each end. Pure.

    Args:
        histogram: (bins,) counts between the range's ends.
        whole: those ends.
        percentile: per cent that stays.
    """
    edges = np.linspace(*_span(whole, "percentile"), len(histogram) + 1)
    share = np.cumsum(histogram) / max(1, int(histogram.sum()))
    cut = (100.0 - percentile) / 200.0
    low = float(edges[int(np.searchsorted(share, cut, side="right"))])
    high = float(edges[min(len(histogram), int(np.searchsorted(share, 1.0 - cut, side="left")) + 1)])
    return Range(max(low, whole.low), min(high, whole.high))


def by_entropy(histogram: NDArray[np.int64], whole: Range) -> Range:
    """The range by the least Kullback-Leibler divergence of the quantized values (Migacz, NVIDIA GTC 2017). Pure.

    Args:
        histogram: (bins,) counts of absolute values, between 0 and the largest.
        whole: the smallest and largest value.
    """
    counts = histogram.astype(np.float64)
    counts[0] = counts[1]  # what a clamp or padding puts at zero says nothing of the spread
    levels = 128 if whole.low < 0.0 < whole.high else 256
    best, least = len(counts), np.inf
    for size in range(levels, len(counts) + 1, _STRIDE):
        clipped = counts[:size].copy()
        clipped[-1] += counts[size:].sum()
        level = np.arange(size) * levels // size
        filled = counts[:size] > 0
        total = np.bincount(level, counts[:size], levels)
        places = np.maximum(np.bincount(level, filled, levels), 1)
        coarse = np.where(filled, (total / places)[level], 0.0)
        if not coarse.sum():
            continue
        p, q = clipped / clipped.sum(), coarse / coarse.sum()
        there = p > 0
        divergence = float(np.sum(p[there] * np.log(p[there] / np.maximum(q[there], 1e-10))))
        if divergence < least:
            best, least = size, divergence
    limit = _span(whole, "entropy")[1] * best / len(counts)
    return Range(max(whole.low, -limit), min(whole.high, limit))


def _span(whole: Range, method: str) -> tuple[float, float]:
    """The ends of a histogram."""
    if method == "entropy":
        return 0.0, max(abs(whole.low), abs(whole.high), 1e-12)
    return whole.low, max(whole.high, whole.low + 1e-12)


def _run(
    graph: Graph, names: Sequence[str], requests: Requests, batch: int, see: Callable[[str, NDArray[Any]], None]
) -> None:
    for feeds in graph.calls(requests, batch):
        for name, values in graph.run(feeds, names).items():
            if values.size:
                see(name, values)


@dataclass(frozen=True, slots=True)
class _Watched:
    data: bytes
    names: list[str]
    places: dict[str, Place]
    called: dict[str, str]


def _watch(model: Any, places: Sequence[Place]) -> _Watched:
    """A copy of the model that gives the tensors as further outputs."""
    onnx = need("onnx")
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    all_scopes = scopes(copy)
    outputs: dict[str, Place] = {}
    for n, (number, name) in enumerate(places):
        scope = all_scopes[number]
        if scope.repeated:
            continue
        watched = f"edgewise_watched_{n}"
        scope.graph.node.append(onnx.helper.make_node("Identity", [name], [watched]))
        scope.graph.output.append(_float_output(onnx, watched))
        while scope.parent is not None:
            watched = _hand_up(onnx, scope.parent.graph, watched)
            scope = scope.parent
            scope.graph.output.append(_float_output(onnx, watched))
        outputs[watched] = (number, name)
    called = {watched: name for watched, (_, name) in outputs.items()}
    return _Watched(copy.SerializeToString(), list(outputs), outputs, called)


def _hand_up(onnx: Any, outer: Any, name: str) -> str:
    """Make a branch's newest output one of its node; the other branch gives an empty tensor there."""
    for node in outer.node:
        branches = list(inner_graphs(node))
        if not any(graph.output and graph.output[-1].name == name for graph in branches):
            continue
        for graph in branches:
            if graph.output[-1].name != name:
                none = onnx.numpy_helper.from_array(np.zeros(0, np.float32))
                graph.node.append(onnx.helper.make_node("Constant", [], [f"{name}_none"], value=none))
                graph.output.append(_float_output(onnx, f"{name}_none"))
        node.output.append(f"{name}_up")
        return f"{name}_up"
    raise AssertionError("a scope's graph is in a node of its parent")


def _float_output(onnx: Any, name: str) -> Any:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
