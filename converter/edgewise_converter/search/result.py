"""What a search found: every candidate, its figures and its verdict. Plain data, for reports and the cache."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgewise_converter.hardware import Host
from edgewise_converter.metrics.score import Score

Objective = Literal["latency", "size"]
Verdict = Literal["winner", "pareto", "dominated", "rejected"]


class CandidateRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A form that was tried."""

    name: str
    engine: str
    format: str
    precision: str
    steps: tuple[str, ...] = ()
    """The passes with their settings, one text a pass; none for the source as it is."""
    is_float: bool = False
    """Whether it is a form of the source in its own precision: what the others must beat."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate, judged."""

    candidate: CandidateRecord
    size_bytes: int | None
    """Of the model file; None where it was not made."""
    score: Score | None
    """None where it was not run."""
    latency_ms: float | None
    """Median of one request on one thread of `SearchResult.host`; None where it was not timed."""
    verdict: Verdict
    reason: str
    """Why it was rejected or dominated; of the winner, what decided."""
    short: str = ""
    """The reason in a word, for plots: `size`, `accuracy`, `latency`, `unchanged`, `pass`, `engine`, ..."""


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """A search for one profile."""

    model: str
    profile: str
    objective: Objective
    accuracy_drop: float
    """Points that a form may lose."""
    metric: str
    """By name; `agreement` where there are no labels."""
    samples: int
    """Held-out requests that it was judged on."""
    baseline: str
    """Name of the candidate that stands for float; empty where none runs."""
    rows: tuple[Row, ...]
    """The winner first, then the front, then the others."""
    winner: str
    host: Host
    measured_on: str
    """Where latencies were measured, in words: `host (CPU name)`, or the profile's own hardware."""
    latency_binding: bool = False
    """Whether that is the profile's own hardware: elsewhere its budget refuses nothing."""
    notes: tuple[str, ...] = ()
    """What the user should know: how samples were split, what was not tried."""

    @property
    def winning(self) -> Row:
        """The winner's row."""
        return next(row for row in self.rows if row.candidate.name == self.winner)

    @property
    def float_row(self) -> Row | None:
        """The float baseline's row."""
        return next((row for row in self.rows if row.candidate.name == self.baseline), None)
