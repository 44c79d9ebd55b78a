"""Whole sets of requests through a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from edgewise_protocol.manifest import StatePair
from numpy.typing import NDArray

from edgewise_converter.engines.named import FREE, NamedModel
from edgewise_converter.errors import EngineError
from edgewise_converter.requests import Requests, Tensors


def answer(model: NamedModel, requests: Requests) -> Tensors:
    """Outputs (N, ...) by name, in the order of the requests.

    Rows go to the model many at once where its answers do not depend on that, else one by one, as a device is asked.

    Raises:
        EngineError: the engine fails, or answers requests in shapes that differ.
    """
    if requests.batched and not (model.mixes_batch and model.batch == FREE):
        return model.infer(requests.feeds)
    return _joined([model.infer(feeds) for feeds in requests.each()], batched=requests.batched)


def answer_sequences(
    model: NamedModel, requests: Requests, state: Sequence[StatePair], lengths: Sequence[int]
) -> Tensors:
    """The same of sequences that the model runs freely: as with a client, its own state is fed back to it.

    Args:
        model: loaded.
        requests: sequences, one after another; the first request of each brings the state that it starts from.
        state: outputs that are fed back.
        lengths: of the sequences; their sum is the number of requests.

    Raises:
        EngineError: see `answer`; or an output that is fed back is missing, becomes NaN or infinite, or does not fit.
    """
    starts = {0, *np.cumsum(lengths).tolist()}
    answers: list[Tensors] = []
    for i, feeds in enumerate(requests.each()):
        own = {} if i in starts else {pair.input: _fed_back(answers[-1], pair, feeds) for pair in state}
        answers.append(model.infer(feeds | own))
    return _joined(answers, batched=requests.batched)


def _fed_back(answers: Tensors, pair: StatePair, feeds: Tensors) -> NDArray[Any]:
    """The state that a model gave, as it takes it."""
    given, wanted = answers.get(pair.output), feeds[pair.input]
    if given is None:
        raise EngineError(f"the converted model has no output {pair.output!r}; it gives {', '.join(answers)}")
    if given.shape != wanted.shape:
        raise EngineError(
            f"the converted model gives its state {pair.output!r} as {list(given.shape)}, and takes it as "
            f"{list(wanted.shape)}"
        )
    if not np.isfinite(given).all():
        raise EngineError(f"the converted model's own state {pair.output!r} becomes NaN or infinite")
    return given.astype(wanted.dtype, copy=False)


def _joined(answers: Sequence[Tensors], *, batched: bool) -> Tensors:
    found: Tensors = {}
    for name in answers[0]:
        shapes = {a[name].shape for a in answers}
        if len(shapes) != 1:
            raise EngineError(
                f"the output {name!r} has another shape from request to request ({sorted(map(list, shapes))[:3]}): "
                "its answers cannot be compared"
            )
        found[name] = (np.concatenate if batched else np.stack)([a[name] for a in answers])
    return found
