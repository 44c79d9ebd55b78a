"""Sequences of a model whose state the client feeds back: carried on by the float model, or recognized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from edgewise_protocol.manifest import TensorSpec
from numpy.typing import NDArray

from edgewise_converter.engines.dtypes import NUMPY
from edgewise_converter.errors import SampleError
from edgewise_converter.importing.samples import fit
from edgewise_converter.requests import Requests, Tensors
from edgewise_converter.sources.shape import Call, Shape, stack

MAX_STEPS: Final = 2_000
"""Steps that a form runs on its own state when it is judged; then it goes on from the float model's."""
_PROBED: Final = 16
"""Requests that are looked at before they are taken for unrelated ones."""
_TOLERANCE: Final = 1e-3
"""By which a recorded state may miss the one that the float model gives, as a share of its largest value."""


def in_one(taken: Tensors, shape: Shape) -> tuple[Tensors, tuple[str, ...]]:
    """Sequences of one request each as one sequence, with a note: a state would never be carried. Pure."""
    specs, axes = {s.name: s for s in shape.inputs}, _axes(shape)
    apart = [name for name, a in taken.items() if a.ndim == len(specs[name].shape) + axes + 1]
    if not apart or any(taken[name].shape[1] != 1 or len(taken[name]) < 2 for name in apart):
        return taken, ()
    count = len(taken[apart[0]])
    note = (
        f"{', '.join(map(repr, apart))} of shape {list(taken[apart[0]].shape)} would be {count} sequences of one "
        f"request, in which no state is carried: taken as one sequence of {count} requests"
    )
    return {name: a[:, 0] if name in apart else a for name, a in taken.items()}, (note,)


def carry(taken: Tensors, shape: Shape, call: Call) -> tuple[Requests, tuple[int, ...]]:
    """Sequences as requests that hold the state, which the model itself carries on; and their lengths.

    Raises:
        SampleError: the inputs differ in what they hold, or the state becomes NaN or infinite.
    """
    specs, axes = {s.name: s for s in shape.inputs}, _axes(shape)
    apart = {a.shape[0] for name, a in taken.items() if a.ndim == len(specs[name].shape) + axes + 1}
    if len(apart) > 1:
        raise SampleError(f"the inputs hold different numbers of sequences: {sorted(apart)}")
    lanes = [
        {n: a[i] if a.ndim == len(specs[n].shape) + axes + 1 else a for n, a in taken.items()}
        for i in range(apart.pop() if apart else 1)
    ]
    rows: dict[str, list[NDArray[Any]]] = {name: [] for name in specs}
    lengths = []
    for lane in lanes:
        if shape.batch is None:
            steps = Requests(stack(lane, shape), batched=False)
        else:
            steps = Requests({n: fit(specs[n], a) for n, a in lane.items()})
        lengths.append(len(steps))
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
    requests = Requests({name: join(parts) for name, parts in rows.items()}, batched=shape.batch is not None)
    return requests, tuple(lengths)


def lengths_of(requests: Requests, shape: Shape, call: Call) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Of requests that bring their state, the lengths of the sequences that they are; with a note where there are none.

    A request goes on with a sequence where its state is what the float model gives on the one before.
    """
    lengths = [1]
    for i in range(len(requests) - 1):
        if i == _PROBED and not are_sequences(lengths):
            lengths += [1] * (len(requests) - 1 - i)
            break
        answers, following = call(requests.one(i)), requests.one(i + 1)
        if all(_alike(answers[pair.output], following[pair.input]) for pair in shape.state):
            lengths[-1] += 1
        else:
            lengths.append(1)
    if are_sequences(lengths):
        return tuple(lengths), ()
    note = "each sample brings a state of its own: what a form's errors add up to over a sequence is not judged"
    return tuple(lengths), (note,)


def are_sequences(lengths: Sequence[int]) -> bool:
    """Whether some request follows on another."""
    return any(length > 1 for length in lengths)


def bounded(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Sequences of at most `MAX_STEPS`, longer ones in pieces. Pure."""
    pieces = []
    for length in lengths:
        whole, rest = divmod(length, MAX_STEPS)
        pieces += [MAX_STEPS] * whole + ([rest] if rest else [])
    return tuple(pieces)


def _alike(given: NDArray[Any], recorded: NDArray[Any]) -> bool:
    if given.shape != recorded.shape:
        return False
    top = float(np.abs(recorded.astype(np.float64)).max(initial=0.0))
    return bool(np.allclose(given, recorded, rtol=0.0, atol=_TOLERANCE * top))


def _axes(shape: Shape) -> int:
    """Of one sequence, axes before a request's own."""
    return 0 if shape.batch is not None else 1


def _zeros(spec: TensorSpec) -> NDArray[Any]:
    return np.zeros(tuple(1 if n == -1 else n for n in spec.shape), NUMPY[spec.dtype])
