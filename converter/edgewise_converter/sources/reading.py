"""The samples of a model that is no run: from one file, or from one for calibration and one that is held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from numpy.typing import NDArray

from edgewise_converter.errors import SampleError
from edgewise_converter.importing.samples import read_arrays
from edgewise_converter.metrics.evaluation import default_metric, lookup
from edgewise_converter.requests import Requests, Tensors, digest_of
from edgewise_converter.sources.feeding import requests_of, split
from edgewise_converter.sources.sequences import MAX_STEPS, are_sequences, bounded
from edgewise_converter.sources.shape import Call, Shape

_SHARED: Final = 0.01
"""Share of held-out samples that may equal one that calibrates: coarse inputs repeat."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user says of a model besides where it is."""

    calibration: Path | None = None
    heldout: Path | None = None
    """One of the two serves as both."""
    state: tuple[tuple[str, str], ...] = ()
    """Pairs of an input and the output that is fed back to it."""
    name: str = ""
    task: str = ""
    labels: tuple[str, ...] = ()
    metric: str = ""
    origin: str = ""
    """Where the model comes from, in the user's words; it is signed."""


class Prepared(NamedTuple):
    """Both sets of requests."""

    calibration: Requests
    heldout: Requests
    y: NDArray[Any] | None
    notes: tuple[str, ...]
    sequences: tuple[int, ...] = ()
    """Of a model with a state: lengths of the held-out sequences, see `Model.sequences`."""


def arrays_of(wanted: Wanted) -> tuple[Tensors, Tensors | None]:
    """The arrays of the file for calibration, and of the held-out one where it is another.

    Raises:
        SampleError: neither is named, or one cannot be read.
    """
    files = [path for path in (wanted.calibration, wanted.heldout) if path is not None]
    if not files:
        raise SampleError(
            "samples of the model's inputs are needed: --calibration FILE and --heldout FILE, or one for both "
            "(.npz, .npy or .safetensors; `y` are labels)"
        )
    first = read_arrays(files[0])
    return first, read_arrays(files[1]) if len(files) == 2 and files[0] != files[1] else None


def prepare(first: Tensors, second: Tensors | None, shape: Shape, call: Call, *, in_order: bool) -> Prepared:
    """Requests of one or two files.

    Raises:
        SampleError: what is wrong, with the array named.
    """
    samples = requests_of(first, shape, call)
    notes = list(samples.notes)
    other = None if second is None else requests_of(second, shape, call)
    if other is not None and other.requests.sha256 == samples.requests.sha256:
        notes.append("both files hold the same samples, and are taken as one")
        samples, other = (samples if other.y is None else other), None
    if other is not None:
        calibration, heldout = samples, other
        notes += [note for note in other.notes if note not in notes]
        if shared := _shared(calibration.requests, heldout.requests):
            notes.append(f"{shared} of {len(heldout.requests)} held-out samples calibrate, too: they judge too kindly")
    else:
        calibration, heldout = split(samples, in_order=in_order)
        first_half = in_order or are_sequences(samples.lengths)
        notes.append(_say_split(len(samples.requests), len(calibration.requests), len(heldout.requests), first_half))
    sequences = bounded(heldout.lengths)
    if len(sequences) > len(heldout.lengths):
        notes.append(f"after {MAX_STEPS} steps of a sequence, a form is judged anew from the float model's state")
    if in_order and heldout.y is not None and len(heldout.y) != len(heldout.requests):
        raise SampleError("a file that keeps variables inside needs one label a request, or none")
    return Prepared(calibration.requests, heldout.requests, heldout.y, tuple(notes), sequences)


def judged_by(wanted: Wanted, y: NDArray[Any] | None, task: str) -> str:
    """The metric's name.

    Raises:
        MetricError: there is no such metric, or it needs labels.
        SampleError: the metric needs labels, and there are none.
    """
    if not wanted.metric:
        return default_metric(task, y is not None)
    if lookup(wanted.metric).needs_labels and y is None:
        raise SampleError(f"the metric {wanted.metric} needs labels: the held-out file must hold them as `y`")
    return wanted.metric


def task_of(wanted: Wanted, y: NDArray[Any] | None) -> str:
    """The model's task: as said, else a classifier where there are labels and no other metric is asked for."""
    labelled = wanted.metric == "top1" or (y is not None and not wanted.metric)
    return wanted.task or ("classification" if labelled else "other")


def _shared(calibration: Requests, heldout: Requests) -> int:
    """How many held-out requests are among those that calibrate; 0 where they are few."""
    known = set(_digests(calibration))
    count = sum(digest in known for digest in _digests(heldout))
    return count if count > _SHARED * len(heldout) else 0


def _digests(requests: Requests) -> list[str]:
    return [digest_of(feeds) for feeds in requests.each()]


def _say_split(total: int, calibration: int, heldout: int, in_order: bool) -> str:
    if total == 1:
        return "one sample both calibrates and judges: give more, or nothing can be said of accuracy"
    how = "the first half" if in_order else "evenly spread"
    return f"of {total} samples {calibration} ({how}) calibrate, the other {heldout} judge"
