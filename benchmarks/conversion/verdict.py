"""Is Edgewise's winner never worse than the best of the others? Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from conversion.contender import Measured

Objective = Literal["latency", "size"]
BUDGET: Final = 0.5
"""Points of 100 that may be lost."""
TIE: Final = 0.01
"""Below this share latencies are one: the search then takes the smaller file."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one case and one objective.

    Attributes:
        aim: the objective, and the profile where that is not the machine's own.
        held: whether the winner is no worse than the best other file within the budget.
        best: the label of that file.
        ratio: the winner's figure over the best other's: smaller is better.
        noise: by how much the ratio may be above 1, a share.
        reason: in words.
    """

    case: str
    objective: Objective
    aim: str
    held: bool
    best: str
    ratio: float
    noise: float
    reason: str


def judge(
    case: str, objective: Objective, winner: Measured | None, others: Sequence[Measured], profile: str = ""
) -> Verdict:
    """Hold a winner against all other files of the case.

    Args:
        case: its name.
        objective: what was asked for.
        winner: Edgewise's; None where it gave none.
        others: float sources and peers' files.
        profile: what the winner is for, where that is not the machine's own.
    """
    aim = f"{objective}, {profile}" if profile else objective
    inside = [m for m in others if m.value is not None and m.latency_ms is not None and m.drop <= BUDGET]
    if winner is None or winner.value is None or winner.latency_ms is None:
        why = "Edgewise gave no file" if winner is None else winner.failure or winner.contender.failure
        return Verdict(case, objective, aim, not inside, "", float("nan"), 0.0, why)
    if winner.drop > BUDGET:
        reason = f"the winner loses {winner.drop:.2f} points; {BUDGET} are allowed"
        return Verdict(case, objective, aim, False, "", float("nan"), 0.0, reason)
    if not inside:
        return Verdict(case, objective, aim, True, "-", 0.0, 0.0, "no other file is within the budget")
    if objective == "size":
        best = min(inside, key=lambda m: m.size_bytes)
        ratio, noise = winner.size_bytes / best.size_bytes, 0.0
    else:
        best = min(inside, key=lambda m: m.latency_ms or 0.0)
        ratio, noise = compared(winner, best)
    held = ratio <= 1 + noise
    figure = f"{ratio:.3f} of {best.contender.label}'s {objective}"
    return Verdict(case, objective, aim, held, best.contender.label, ratio, noise, figure)


def compared(one: Measured, other: Measured) -> tuple[float, float]:
    """The median over the rounds of one's latency over the other's, and its noise.

    Both were timed in the same rounds, so that what disturbed a round disturbs both. The noise is
    half the interquartile range of the rounds' ratios, and no less than a tie.
    """
    ratios = sorted(a / b for a, b in zip(one.rounds, other.rounds, strict=True))
    quarter = len(ratios) // 4
    return statistics.median(ratios), max(TIE, (ratios[-1 - quarter] - ratios[quarter]) / 2)
