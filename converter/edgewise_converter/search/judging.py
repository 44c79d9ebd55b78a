"""Which form wins. Pure: figures in, verdicts out.

Size is held against the profile's budget before accuracy is measured, accuracy against the
user's budget before latency is. Of the rest, the best in the objective wins; float forms are
always among them, so that nothing leaves that is worse than float.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from edgewise_profiles.schema import Budget

from edgewise_converter.metrics.gate import target_check
from edgewise_converter.metrics.score import LARGEST, Score
from edgewise_converter.search.candidates import Candidate
from edgewise_converter.search.result import Objective, Row, Verdict

TIE: Final = 0.01
"""Latencies that differ by less are equal: the smaller file is taken, then the simpler form."""
_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate with what was found of it so far."""

    candidate: Candidate
    size_bytes: int | None = None
    score: Score | None = None
    latency_ms: float | None = None
    refused: str = ""
    """Why it is out; empty while it is in."""
    short: str = ""
    """The same in a word: `size`, `accuracy`, `latency`, `unchanged`, `pass`, `engine`, ..."""

    def out(self, reason: str, short: str) -> Trial:
        """The same trial, rejected where there is a reason."""
        return replace(self, refused=reason, short=short) if reason else self

    @property
    def loss(self) -> float:
        """Points lost to the source, 0 where it gained."""
        return max(0.0, self.score.drop) if self.score is not None else 0.0


def size_reason(size_bytes: int, budget: Budget) -> str:
    """Why a file of this size is out; empty where it is not."""
    if size_bytes <= budget.model_size_kib * _KIB:
        return ""
    return f"the file has {size_bytes / _KIB:.1f} KiB; the profile allows {budget.model_size_kib}"


def accuracy_reason(score: Score, allowed_points: float) -> str:
    """Why a form with this score is out; empty where it is not."""
    broken = [o.output for o in score.outputs if o.relative_error >= LARGEST]
    if broken:
        return f"the output {broken[0]!r} is NaN or infinite"
    if score.drop <= allowed_points:
        return ""
    worst = min(score.outputs, key=lambda o: o.agreement, default=None)
    how = f"; {worst.output!r} agrees to {100 * worst.agreement:.2f} % ({worst.basis})" if worst else ""
    return (
        f"{score.name} falls from {100 * score.float_value:.2f} to {100 * score.value:.2f}: {score.drop:.2f} points "
        f"are lost, {allowed_points:g} are allowed{how}"
    )


def least_reason(score: Score, least: float | None) -> str:
    """Why a form is out whatever its source reaches; empty where it is not."""
    if least is None or target_check(score.name, score.value, least).passed:
        return ""
    return f"{score.name} is {score.value:.4f}; at least {least:g} is asked for (float has {score.float_value:.4f})"


def latency_reason(latency_ms: float | None, budget: Budget) -> str:
    """Why a form with this latency is out, if it was measured on the profile's hardware; empty where it is not."""
    if latency_ms is None or latency_ms <= budget.latency_ms:
        return ""
    return f"one request takes {latency_ms:.3f} ms; the profile allows {budget.latency_ms:g}"


def baseline_of(trials: Sequence[Trial], objective: Objective) -> Trial | None:
    """What stands for float: the best of the float forms in the objective; None where none runs."""
    floats = [t for t in trials if t.candidate.is_float and not t.refused]
    return best(floats, objective) if floats else None


def best(trials: Sequence[Trial], objective: Objective) -> Trial:
    """The best of trials that are in, at least one. An earlier one is simpler."""
    order = {trial.candidate.name: (len(trial.candidate.steps), i) for i, trial in enumerate(trials)}
    if objective == "size":
        return min(trials, key=lambda t: (t.size_bytes or 0, _latency(t), order[t.candidate.name]))
    fastest = min(_latency(t) for t in trials)
    tied = [t for t in trials if _latency(t) <= fastest * (1 + TIE)]
    return min(tied, key=lambda t: (t.size_bytes or 0, order[t.candidate.name]))


def winner_of(trials: Sequence[Trial], objective: Objective) -> Trial | None:
    """The form to bundle: the best of those that are in, and smaller or faster than float; None where none is in."""
    inside = [t for t in trials if not t.refused]
    if not inside:
        return None
    baseline = baseline_of(trials, objective)
    if baseline is None:
        return best(inside, objective)
    return best([t for t in inside if t.candidate.is_float or gains(t, baseline)], objective)


def gains(trial: Trial, baseline: Trial) -> bool:
    """Whether a form is smaller or, by more than a tie, faster than float."""
    smaller = (trial.size_bytes or 0) < (baseline.size_bytes or 0)
    return smaller or _latency(trial) * (1 + TIE) < _latency(baseline)


def front(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Those that no other beats in size, latency and loss at once (Pareto), in their order."""
    return tuple(t for t in trials if not any(dominates(other, t) for other in trials))


def dominates(one: Trial, other: Trial) -> bool:
    """Whether one is nowhere worse, and somewhere better."""
    a, b = _figures(one), _figures(other)
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def rows(trials: Sequence[Trial], objective: Objective) -> tuple[Row, ...]:
    """Every trial with its verdict: the winner, the front, the dominated, the rejected."""
    inside = [t for t in trials if not t.refused]
    winner, baseline = winner_of(trials, objective), baseline_of(trials, objective)
    on_front = front(inside)
    groups: dict[Verdict, list[Row]] = {"winner": [], "pareto": [], "dominated": [], "rejected": []}
    for trial in trials:
        if trial.refused:
            groups["rejected"].append(_row(trial, "rejected", trial.refused))
        elif trial is winner:
            groups["winner"].append(_row(trial, "winner", _why(trial, baseline, objective)))
        elif baseline is not None and not trial.candidate.is_float and not gains(trial, baseline):
            reason = f"neither smaller nor faster than {baseline.candidate.name}"
            groups["rejected"].append(_row(trial.out(reason, "not-better"), "rejected", reason))
        elif trial in on_front:
            groups["pareto"].append(_row(trial, "pareto", ""))
        else:
            by = next(t for t in on_front if dominates(t, trial))
            groups["dominated"].append(
                _row(trial, "dominated", f"{by.candidate.name} is better or equal in everything")
            )
    return tuple(row for group in groups.values() for row in sorted(group, key=_order))


def _row(trial: Trial, verdict: Verdict, reason: str) -> Row:
    return Row(
        candidate=trial.candidate.record(),
        size_bytes=trial.size_bytes,
        score=trial.score,
        latency_ms=trial.latency_ms,
        verdict=verdict,
        reason=reason,
        short=trial.short,
    )


def _why(winner: Trial, baseline: Trial | None, objective: Objective) -> str:
    timed = winner.latency_ms is not None
    if baseline is None:
        return f"the best in {objective if timed else 'size'} of what was tried; no float form is among it"
    if winner is baseline:
        return f"nothing within the budget is better than float in {objective}"
    size = (baseline.size_bytes or 0) / (winner.size_bytes or 1)
    if winner.latency_ms is None or baseline.latency_ms is None:
        return f"{size:.2f} x smaller than {baseline.candidate.name}"
    return (
        f"the best in {objective}: {baseline.latency_ms / winner.latency_ms:.2f} x as fast and {size:.2f} x smaller "
        f"than {baseline.candidate.name}"
    )


def _latency(trial: Trial) -> float:
    return float("inf") if trial.latency_ms is None else trial.latency_ms


def _figures(trial: Trial) -> tuple[float, float, float]:
    return (trial.size_bytes or 0, _latency(trial), trial.loss)


def _order(row: Row) -> tuple[float, float]:
    latency = float("inf") if row.latency_ms is None else row.latency_ms
    return (latency, row.size_bytes or 0)
