"""Whole sets of requests through a loaded model."""

from __future__ import annotations

import numpy as np

from edgewise_converter.engines.named import NamedModel
from edgewise_converter.errors import EngineError
from edgewise_converter.requests import Requests, Tensors


def answer(model: NamedModel, requests: Requests) -> Tensors:
    """Outputs (N, ...) by name, in the order of the requests.

    Raises:
        EngineError: the engine fails, or answers requests in shapes that differ.
    """
    if requests.batched:
        return model.infer(requests.feeds)
    answers = [model.infer(feeds) for feeds in requests.each()]
    found: Tensors = {}
    for name in answers[0]:
        shapes = {a[name].shape for a in answers}
        if len(shapes) != 1:
            raise EngineError(
                f"the output {name!r} has another shape from request to request ({sorted(map(list, shapes))[:3]}): "
                "its answers cannot be compared"
            )
        found[name] = np.stack([a[name] for a in answers])
    return found
