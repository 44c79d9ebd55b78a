"""From a file of samples to requests: batches, whole requests, and sequences through a stateful model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from edgewise_protocol.manifest import StatePair, TensorSpec
from numpy.typing import NDArray

from edgewise_converter.calibration import spread_indices
from edgewise_converter.engines.dtypes import NUMPY
from edgewise_converter.errors import SampleError
from edgewise_converter.importing.samples import INPUT, LABELS, MAX_SAMPLES, OUTPUT, fit, key_of, labels_of, match
from edgewise_converter.requests import Requests, Tensors

Call = Callable[[Tensors], Tensors]
"""The float model on one request."""
CALIBRATION: Final = 512
"""Of one file that serves as both, at most so many samples calibrate."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What requests to a model look like."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: int | None
    state: tuple[StatePair, ...] = ()

    @property
    def fed_back(self) -> frozenset[str]:
        """Inputs that are outputs of the call before."""
        return frozenset(pair.input for pair in self.state)


@dataclass(frozen=True, slots=True)
class Samples:
    """Requests with what is known of their answers."""

    requests: Requests
    y: NDArray[Any] | None


def check_state(pairs: Sequence[tuple[str, str]], shape: Shape) -> tuple[StatePair, ...]:
    """Hold pairs of names against the model.

    Raises:
        SampleError: a name is not the model's, is named twice, or the two tensors differ.
    """
    inputs, outputs = {s.name: s for s in shape.inputs}, {s.name: s for s in shape.outputs}
    for name, other in pairs:
        if name not in inputs or other not in outputs:
            raise SampleError(
                f"the state {name}={other}: the model takes {', '.join(inputs)} and gives {', '.join(outputs)}"
            )
        if inputs[name].dtype != outputs[other].dtype or len(inputs[name].shape) != len(outputs[other].shape):
            raise SampleError(f"the state {name}={other}: the two tensors differ in type or rank")
    if len({n for n, _ in pairs}) != len(pairs) or len({o for _, o in pairs}) != len(pairs):
        raise SampleError("the state names a tensor twice")
    if len(pairs) == len(inputs):
        raise SampleError("every input is named as state; a model takes something else too")
    return tuple(StatePair(input=name, output=other) for name, other in pairs)


def requests_of(arrays: Mapping[str, NDArray[Any]], shape: Shape, call: Call) -> Samples:
    """Requests of a file's arrays.

    Arrays of a model with a batch are (N, ...); of one without, one request, or (N, ...) with one
    more axis. Where the state's arrays are missing, the file holds a sequence, or (S, T, ...) with
    one more axis several: the state starts at zero, and what `call` answers is carried on.

    Raises:
        SampleError: what is wrong, with the array named.
    """
    missing = [name for name in sorted(shape.fed_back) if key_of(name, arrays) is None]
    rest = dict(arrays)
    y = rest.pop(LABELS, None) if LABELS not in {s.name for s in shape.inputs} else None
    if shape.batch is not None and not missing:
        requests = Requests(match(rest, shape.inputs, shape.outputs, shape.batch).inputs)
        return Samples(requests, _labels(y, len(requests)))
    taken = _named(rest, [s for s in shape.inputs if s.name not in missing], shape)
    if not missing:
        requests = Requests(_stack(taken, shape), batched=False)
        return Samples(requests, _labels(y, len(requests)))
    if len(missing) != len(shape.state):
        raise SampleError(f"the samples hold some of the state, and lack {', '.join(missing)}: give all of it, or none")
    carried = _carry(taken, shape, call)
    return Samples(carried, _labels(None if y is None else y.reshape(-1), len(carried)))


def split(samples: Samples, *, in_order: bool) -> tuple[Samples, Samples]:
    """One set of samples as a calibration part and a held-out part; always the same. Pure.

    Evenly spread samples calibrate, at most half of all and 512; the others are held out. Where
    answers depend on the requests before, the first half calibrates. One sample serves as both.

    Raises:
        SampleError: a label belongs to several samples.
    """
    count = len(samples.requests)
    if count == 1:
        return samples, samples
    if samples.y is not None and len(samples.y) != count:
        raise SampleError("where one label belongs to several samples, give --calibration and --heldout apart")
    first = np.arange(count // 2) if in_order else spread_indices(count, min(count // 2, CALIBRATION))
    rest = np.setdiff1d(np.arange(count), first)
    return _take(samples, first), _take(samples, rest)


def _labels(y: NDArray[Any] | None, count: int) -> NDArray[np.int64] | None:
    """Labels, one a request, or one for every k requests in turn."""
    whole = y is not None and y.ndim == 1 and 0 < len(y) < count and count % len(y) == 0
    return labels_of(y, len(y) if whole and y is not None else count)


def _take(samples: Samples, indices: NDArray[np.int64]) -> Samples:
    return Samples(samples.requests.take(indices), None if samples.y is None else samples.y[indices])


def _named(arrays: Mapping[str, NDArray[Any]], specs: Sequence[TensorSpec], shape: Shape) -> Tensors:
    """Arrays by the inputs' names."""
    rest = {k: v for k, v in arrays.items() if k not in {OUTPUT + s.name for s in shape.outputs}}
    found = {spec.name: rest.pop(key) for spec in specs if (key := key_of(spec.name, rest))}
    if not found and len(specs) == 1 and len(rest) == 1:
        found = {specs[0].name: rest.popitem()[1]}
    lacking = sorted({s.name for s in specs} - found.keys())
    if lacking or rest:
        raise SampleError(
            f"the samples {'lack ' + ', '.join(lacking) if lacking else 'hold'}"
            f"{' and hold' if lacking and rest else ''}"
            f"{' ' + ', '.join(sorted(rest)) + ', which the model does not know' if rest else ''}; it takes "
            f"{', '.join(f'{INPUT}{s.name} {s.dtype} {list(s.shape)}' for s in specs)}"
        )
    return found


def _stack(taken: Tensors, shape: Shape) -> Tensors:
    """Whole requests (N, ...): an array of a request's own rank serves all of them."""
    specs = {s.name: s for s in shape.inputs}
    counts = {len(a) for name, a in taken.items() if a.ndim == len(specs[name].shape) + 1}
    if len(counts) > 1 or counts & {0} or max(counts, default=1) > MAX_SAMPLES:
        raise SampleError(
            f"the inputs hold different numbers of requests, none, or more than {MAX_SAMPLES}: {sorted(counts)}"
        )
    count = counts.pop() if counts else 1
    return {name: _whole(specs[name], array, count) for name, array in taken.items()}


def _whole(spec: TensorSpec, array: NDArray[Any], count: int) -> NDArray[Any]:
    if array.ndim == len(spec.shape):
        array = np.broadcast_to(array, (count, *array.shape))
    return fit(msgspec.structs.replace(spec, shape=(-1, *spec.shape)), np.ascontiguousarray(array))


def _carry(taken: Tensors, shape: Shape, call: Call) -> Requests:
    """Sequences as requests that hold the state, which the model itself carries on."""
    specs = {s.name: s for s in shape.inputs}
    rank = 0 if shape.batch is not None else 1  # axes before a request's own, in one sequence
    apart = {a.shape[0] for name, a in taken.items() if a.ndim == len(specs[name].shape) + rank + 1}
    if len(apart) > 1:
        raise SampleError(f"the inputs hold different numbers of sequences: {sorted(apart)}")
    lanes = [
        {n: a[i] if a.ndim == len(specs[n].shape) + rank + 1 else a for n, a in taken.items()}
        for i in range(apart.pop() if apart else 1)
    ]
    rows: dict[str, list[NDArray[Any]]] = {name: [] for name in specs}
    for lane in lanes:
        if shape.batch is None:
            steps = Requests(_stack(lane, shape), batched=False)
        else:
            steps = Requests({n: fit(specs[n], a) for n, a in lane.items()})
        state = {pair.input: _zeros(specs[pair.input]) for pair in shape.state}
        for feeds in steps.each():
            whole = feeds | state
            for name, array in whole.items():
                rows[name].append(array)
            answers = call(whole)
            state = {pair.input: answers[pair.output] for pair in shape.state}
            if not all(np.isfinite(a).all() for a in state.values() if a.dtype.kind == "f"):
                raise SampleError("the float model's own state becomes NaN or infinite on the samples")
    join = np.stack if shape.batch is None else np.concatenate
    return Requests({name: join(parts) for name, parts in rows.items()}, batched=shape.batch is not None)


def _zeros(spec: TensorSpec) -> NDArray[Any]:
    return np.zeros(tuple(1 if n == -1 else n for n in spec.shape), NUMPY[spec.dtype])
