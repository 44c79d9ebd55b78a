"""What a long run says of itself while it runs."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """One report. `epoch` counts finished epochs, 0 before the first and in other stages."""

    stage: str
    """`data`, `train`, `evaluate`, `export`, `training-graph`, `track` or `write`."""
    message: str = ""
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    """Mean training loss of the epoch, nats."""
    accuracy: float | None = None
    """Training accuracy of the epoch, 0 to 1."""
    heldout_accuracy: float | None = None
    eta_s: float | None = None
    """Estimated seconds until the last epoch ends."""


ProgressCallback = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """A callback for callers that do not want reports."""
