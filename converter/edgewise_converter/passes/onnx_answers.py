"""Running an ONNX graph on calibration requests: to hold two graphs against each other, and to watch one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from edgewise_converter.engines.time_limit import ANSWER_S, TimeLimit
from edgewise_converter.errors import PassError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.requests import Requests, Tensors

COMPARED: Final = 16
"""Requests on which two graphs are held against each other."""
_TOLERANCE: Final = 1e-4
"""Of an output's range: how far float32 sums go when their order changes."""
_ERRORS_ONLY: Final = 4


class Graph:
    """A model in onnxruntime on one thread, with only such optimizations as hold on every processor.

    Args:
        data: the file.
        what: it is, for messages.
        optimized: whether even those are done.

    Raises:
        PassError: onnxruntime refuses it.
    """

    def __init__(self, data: bytes, what: str, optimized: bool = True) -> None:
        ort = need("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC if optimized else levels.ORT_DISABLE_ALL
        self._what, self._limit = what, TimeLimit(ort.RunOptions)
        try:
            with quietly():
                self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise PassError(f"onnxruntime refuses {what}: {str(error)[:300]}") from error
        self.inputs = {i.name: i.shape for i in self._session.get_inputs()}
        self.outputs = {o.name: o.shape for o in self._session.get_outputs()}

    def calls(self, requests: Requests, batch: int) -> Iterator[Tensors]:
        """Requests as the graph takes them: up to `batch` samples at once, where its batch is free."""
        if not requests.batched:
            yield from requests.each()
            return
        fixed = {shape[0] for name, shape in self.inputs.items() if name in requests.feeds and shape}
        sizes = {size for size in fixed if isinstance(size, int)}
        size = min(sizes) if sizes else batch
        for start in range(0, len(requests), size):
            rows = np.arange(start, start + size if sizes else min(start + size, len(requests))) % len(requests)
            yield {name: np.ascontiguousarray(array[rows]) for name, array in requests.feeds.items()}

    def run(self, feeds: Tensors, names: Sequence[str] | None = None) -> Tensors:
        """Answer one call.

        Raises:
            PassError: onnxruntime fails.
        """
        names = list(self.outputs) if names is None else list(names)
        limit = self._limit
        limit.begin(ANSWER_S)
        try:
            found = self._session.run(names, {n: feeds[n] for n in self.inputs if n in feeds}, limit.options)
        except Exception as error:
            if limit.passed:
                raise PassError(
                    f"onnxruntime has no answer of {self._what} after {ANSWER_S:g} s: the model is too large for a "
                    "device, or holds a loop without an end"
                ) from None
            raise PassError(f"onnxruntime fails on {self._what}: {str(error)[:300]}") from error
        finally:
            limit.end()
        return dict(zip(names, map(np.asarray, found), strict=True))


def hold_same(before: bytes, after: bytes, requests: Requests, what: str) -> None:
    """Hold that two graphs answer alike.

    Raises:
        PassError: they do not, or one of them does not run.
    """
    old, new = Graph(before, "the graph before"), Graph(after, what)
    sample = requests.spread(COMPARED)
    ours = [new.run(feeds) for feeds in new.calls(sample, COMPARED)]
    theirs = [old.run(feeds) for feeds in new.calls(sample, COMPARED)]
    for right, found in zip(theirs, ours, strict=True):
        for name, wanted in right.items():
            if not _alike(wanted, found[name]):
                raise PassError(f"{what} answers otherwise than the graph before it, in the output {name!r}")


def _alike(wanted: Any, found: Any) -> bool:
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return False
    if wanted.dtype.kind != "f":
        return bool(np.mean(wanted == found) > 0.999) if wanted.size else True
    finite = np.isfinite(wanted)
    if not np.array_equal(finite, np.isfinite(found)):
        return False
    if not finite.any():
        return True
    span = max(float(np.abs(wanted[finite]).max()), 1e-6)
    return bool(np.abs(wanted[finite].astype(np.float64) - found[finite]).max() <= _TOLERANCE * span)
