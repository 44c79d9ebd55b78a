"""One file that is scored and timed, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Who = Literal["float", "peer", "edgewise"]


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to a file.

    Attributes:
        who: whose it is.
        label: in the table.
        format: `onnx`, `ort` or `tflite`.
        data: the file; empty where there is none.
        failure: why there is none.
        precision: of Edgewise's winner, in words.
    """

    who: Who
    label: str
    format: str
    data: bytes = b""
    failure: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """A contender, and what the harness found.

    Attributes:
        contender: see there.
        value: accuracy or agreement, in [0, 1]; None where it does not run.
        float_value: of the float file.
        latency_ms: median of the rounds' medians.
        rounds: medians of all rounds, ms, in their order; the same index is the same moment.
        failure: why it does not run.
    """

    contender: Contender
    value: float | None = None
    float_value: float = 1.0
    latency_ms: float | None = None
    rounds: tuple[float, ...] = ()
    failure: str = ""

    @property
    def drop(self) -> float:
        """Points of 100 lost; NaN where it does not run."""
        return float("nan") if self.value is None else round(100 * (self.float_value - self.value), 6)

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return len(self.contender.data)

    @property
    def spread(self) -> float:
        """Half the interquartile range of the rounds over their median."""
        if len(self.rounds) < 4 or not self.latency_ms:
            return 0.0
        ordered = sorted(self.rounds)
        quarter = len(ordered) // 4
        return (ordered[-1 - quarter] - ordered[quarter]) / 2 / self.latency_ms
