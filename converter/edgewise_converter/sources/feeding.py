"""From a file of samples to requests: batches, whole requests, and what belongs to a stateful model.

Sequences are carried on, and recognized, in `sources.sequences`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from edgewise_protocol.manifest import StatePair, TensorSpec
from numpy.typing import NDArray

from edgewise_converter.calibration import spread_indices
from edgewise_converter.errors import SampleError
from edgewise_converter.importing.samples import INPUT, LABELS, OUTPUT, key_of, labels_of, match
from edgewise_converter.requests import Requests, Tensors
from edgewise_converter.sources.sequences import are_sequences, carry, in_one, lengths_of
from edgewise_converter.sources.shape import Call, Shape, stack

CALIBRATION: Final = 512
"""Of one file that serves as both, at most so many samples calibrate."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Requests with what is known of their answers."""

    requests: Requests
    y: NDArray[Any] | None
    lengths: tuple[int, ...] = ()
    """Of a model with a state: how many requests in turn are a sequence each, all together."""
    notes: tuple[str, ...] = ()
    """What was decided for the user."""


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
    one more axis several: the state starts at zero, and what `call` answers is carried on. Where they
    are there, requests are a sequence as far as each brings the state that the one before gave.

    Raises:
        SampleError: what is wrong, with the array named.
    """
    missing = [name for name in sorted(shape.fed_back) if key_of(name, arrays) is None]
    rest = dict(arrays)
    y = rest.pop(LABELS, None) if LABELS not in {s.name for s in shape.inputs} else None
    if shape.batch is not None and not missing:
        return _given(Requests(match(rest, shape.inputs, shape.outputs, shape.batch).inputs), y, shape, call)
    taken = _named(rest, [s for s in shape.inputs if s.name not in missing], shape)
    if not missing:
        return _given(Requests(stack(taken, shape), batched=False), y, shape, call)
    if len(missing) != len(shape.state):
        raise SampleError(f"the samples hold some of the state, and lack {', '.join(missing)}: give all of it, or none")
    taken, notes = in_one(taken, shape)
    carried, lengths = carry(taken, shape, call)
    return Samples(carried, _labels(None if y is None else y.reshape(-1), len(carried)), lengths, notes)


def _given(requests: Requests, y: NDArray[Any] | None, shape: Shape, call: Call) -> Samples:
    """Requests that bring all of their inputs."""
    labels = _labels(y, len(requests))
    if not shape.state:
        return Samples(requests, labels)
    return Samples(requests, labels, *lengths_of(requests, shape, call))


def split(samples: Samples, *, in_order: bool) -> tuple[Samples, Samples]:
    """One set of samples as a calibration part and a held-out part; always the same. Pure.

    Evenly spread samples calibrate, at most half of all and 512; the others are held out. Where
    answers depend on the requests before, the first half calibrates: of several sequences whole ones, so
    that no held-out request neighbours one that calibrates. One sample serves as both.

    Raises:
        SampleError: a label belongs to several samples.
    """
    count = len(samples.requests)
    if count == 1:
        return samples, samples
    if samples.y is not None and len(samples.y) != count:
        raise SampleError("where one label belongs to several samples, give --calibration and --heldout apart")
    if are_sequences(samples.lengths):
        return _split_sequences(samples)
    first = np.arange(count // 2) if in_order else spread_indices(count, min(count // 2, CALIBRATION))
    rest = np.setdiff1d(np.arange(count), first)
    single = (1,) if samples.lengths else ()
    return _take(samples, first, single * len(first)), _take(samples, rest, single * len(rest))


def _split_sequences(samples: Samples) -> tuple[Samples, Samples]:
    lengths, count = samples.lengths, len(samples.requests)
    if len(lengths) == 1:
        lengths, whole = (count // 2, count - count // 2), 1
    else:
        whole = int(np.argmin(np.abs(np.cumsum(lengths)[:-1] - count / 2))) + 1
    border = sum(lengths[:whole])
    return (
        _take(samples, np.arange(border), lengths[:whole]),
        _take(samples, np.arange(border, count), lengths[whole:]),
    )


def _labels(y: NDArray[Any] | None, count: int) -> NDArray[np.int64] | None:
    """Labels, one a request, or one for every k requests in turn."""
    if y is not None and y.dtype.kind == "f":
        raise SampleError(
            f"the labels `{LABELS}` are {y.dtype} {list(y.shape)}; labels are {count} class indices, whole numbers. Of "
            f"classes, save them as integers; of a regression, leave `{LABELS}` out: its forms are judged by their "
            "agreement with the float model (R squared)"
        )
    whole = y is not None and y.ndim == 1 and 0 < len(y) < count and count % len(y) == 0
    return labels_of(y, len(y) if whole and y is not None else count)


def _take(samples: Samples, indices: NDArray[np.int64], lengths: tuple[int, ...]) -> Samples:
    y = None if samples.y is None else samples.y[indices]
    return Samples(samples.requests.take(indices), y, lengths, samples.notes)


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
