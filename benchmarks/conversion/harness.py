"""One harness for everybody's files: scored on the same requests, timed in turn in the same rounds.

A file is opened as a device's engine opens it, on one thread; a call goes from the client's
float32 arrays to float32 answers, so that a file with int8 inputs pays for its conversions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from edgewise_converter.engines.answering import answer
from edgewise_converter.engines.named import NamedModel
from edgewise_converter.engines.opening import open_named
from edgewise_converter.errors import ConverterError
from edgewise_converter.metrics.evaluation import evaluate
from edgewise_converter.requests import Requests
from edgewise_converter.sources.feeding import Samples, Shape, check_state, requests_of
from numpy.typing import NDArray

from conversion.case import Case, Tensors
from conversion.contender import Contender, Measured
from conversion.fetching import say

ROUND_SECONDS: Final = 0.04
_MAX_CALLS: Final = 400
_WARM_UP: Final = 10
_REQUESTS: Final = 8
"""Different requests that are timed in turn."""


@dataclass(frozen=True, slots=True)
class Floor:
    """A float file in its engine: what the others of its format are held against."""

    requests: Requests
    y: Any
    answers: Tensors
    shape: Shape


def opened(contender: Contender) -> NamedModel:
    """The file in its engine.

    Raises:
        ConverterError: the engine refuses it.
    """
    return open_named(contender.data, cast(Any, contender.format))


def requests(case: Case, arrays: Tensors, model: NamedModel) -> tuple[Samples, Shape]:
    """Requests of a case's arrays under a file's own input names; the file itself carries a state on."""
    names = [spec.name for spec in model.inputs]
    free = {n: a for n, a in arrays.items() if n != "y"}
    if len(names) == 1 and len(free) == 1:
        arrays = {names[0]: next(iter(free.values())), **({"y": arrays["y"]} if "y" in arrays else {})}
    shape = Shape(model.inputs, model.outputs, model.batch)
    shape = replace(shape, state=check_state(case.state, shape))
    return requests_of(arrays, shape, model.infer), shape


def floor_of(case: Case, source: Contender) -> Floor:
    """Answers of a float file on what the case is judged by."""
    model = opened(source)
    samples, shape = requests(case, case.judged, model)
    return Floor(samples.requests, samples.y, answer(model, samples.requests), shape)


def answers_of(case: Case, count: int) -> NDArray[Any]:
    """The first output of a case's only file on its first requests, (count, ...)."""
    ((form, path),) = case.forms.items()
    model = opened(Contender("float", "", form, path.read_bytes()))
    samples, _ = requests(case, {name: array[:count] for name, array in case.judged.items()}, model)
    return next(iter(answer(model, samples.requests).values()))


def measure(case: Case, contenders: Sequence[Contender], rounds: int) -> list[Measured]:
    """Score and time all files of a case.

    Args:
        case: with the samples.
        contenders: the float file of each format among them.
        rounds: in each every file is called for 0.04 s, in an order that turns.
    """
    floors = {c.format: floor_of(case, c) for c in contenders if c.who == "float"}
    floors["ort"] = floors.get("onnx", next(iter(floors.values())))
    found = [_scored(case, contender, floors[contender.format]) for contender in contenders]
    return _timed(found, floors, rounds)


def _scored(case: Case, contender: Contender, floor: Floor) -> Measured:
    if not contender.data:
        return Measured(contender, failure=contender.failure or "no file")
    say(f"{case.name}: scoring {contender.label} ...")
    fed_back = {output for _, output in case.state}
    try:
        model = opened(contender)
        given = answer(model, _named(floor.requests, model))
        wanted = {name: array for name, array in floor.answers.items() if name not in fed_back}
        if len(given) == len(floor.answers) and not wanted.keys() <= given.keys():
            given = dict(zip(floor.answers, given.values(), strict=True))
        metric = case.metric or ("top1" if floor.y is not None else "agreement")
        score = evaluate(metric, given, wanted, floor.y, floor.requests.feeds, task=case.task)
    except ConverterError as error:
        return Measured(contender, failure=f"does not run: {str(error)[:160]}")
    return Measured(contender, value=score.value, float_value=score.float_value)


def _named(given: Requests, model: NamedModel) -> Requests:
    """The requests under the names of a file whose converter changed them; by their places."""
    names = [spec.name for spec in model.inputs]
    if set(names) == given.feeds.keys() or len(names) != len(given.feeds):
        return given
    return Requests(dict(zip(names, given.feeds.values(), strict=True)), given.batched)


def _timed(found: list[Measured], floors: dict[str, Floor], rounds: int) -> list[Measured]:
    """Equal files are one, and timed once: what sets them apart would be noise alone."""
    models: dict[int, tuple[NamedModel, list[Tensors]]] = {}
    calls: dict[int, int] = {}
    alike: dict[tuple[str, bytes], int] = {}
    for place, measured in enumerate(found):
        if measured.value is None:
            continue
        if alike.setdefault((measured.contender.format, measured.contender.data), place) != place:
            continue
        model = opened(measured.contender)
        asked = _named(floors[measured.contender.format].requests, model).spread(_REQUESTS)
        feeds = list(asked.each())
        for i in range(_WARM_UP):
            model.infer(feeds[i % len(feeds)])
        models[place] = (model, feeds)
        calls[place] = max(1, min(_MAX_CALLS, int(ROUND_SECONDS / _seconds(model, feeds[0]))))
    times: dict[int, list[float]] = {place: [] for place in models}
    order = list(models)
    for turn in range(rounds):
        first = turn % max(1, len(order))
        for place in order[first:] + order[:first]:
            model, feeds = models[place]
            taken = [_seconds(model, feeds[i % len(feeds)]) for i in range(calls[place])]
            times[place].append(statistics.median(taken) * 1e3)
    return [
        m if m.value is None else _with_rounds(m, times[alike[m.contender.format, m.contender.data]]) for m in found
    ]


def _with_rounds(measured: Measured, times: list[float]) -> Measured:
    return replace(measured, rounds=tuple(times), latency_ms=statistics.median(times))


def _seconds(model: NamedModel, feeds: Tensors) -> float:
    start = time.perf_counter()
    model.infer(feeds)
    return time.perf_counter() - start
