"""How far a converted model is from its source. Pure."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise_converter.engines.runner import Array


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """Measured on held-out data; shares are in [0, 1], errors relative to the source's output range."""

    samples: int
    max_error: float
    """Largest absolute difference of an output element."""
    rms_error: float
    """Root mean square of the differences."""
    accuracy: float | None = None
    """Share of right classes of the converted model; None where the task has no classes."""
    accuracy_float: float | None = None
    """The same of the source."""
    agreement: float | None = None
    """Share of samples for which both name the same class."""


def compare(outputs: Array, source_outputs: Array, labels: NDArray[Any], task: str) -> Quality:
    """Compare outputs (N, ...) of a converted model with those of its source on the same samples.

    Outputs that are NaN or infinite count as infinitely far.
    """
    span = float(source_outputs.max() - source_outputs.min()) or 1.0
    with np.errstate(all="ignore"):
        difference = np.abs(outputs.astype(np.float64) - source_outputs.astype(np.float64)) / span
        difference[~np.isfinite(difference)] = np.inf
        found = Quality(
            samples=len(outputs),
            max_error=float(difference.max()),
            rms_error=float(np.sqrt(np.mean(difference**2))),
        )
    if task != "classification":
        return found
    ours, theirs = outputs.reshape(len(outputs), -1).argmax(1), source_outputs.reshape(len(outputs), -1).argmax(1)
    return msgspec.structs.replace(
        found,
        accuracy=float(np.mean(ours == labels)),
        accuracy_float=float(np.mean(theirs == labels)),
        agreement=float(np.mean(ours == theirs)),
    )
