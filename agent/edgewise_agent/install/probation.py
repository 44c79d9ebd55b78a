"""Whether a model on probation has done well enough. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgewise_agent.config import ProbationConfig

Judgement = Literal["wait", "confirm", "fault", "expired"]


@dataclass(frozen=True)
class Evidence:
    """What is known of the model since it serves."""

    serving: bool
    """The table still has this very version."""
    inferences_ok: int
    errors: int
    elapsed_s: float
    left_s: float
    """Time that is left to confirm."""
    reachable: bool
    """The fleet could have objected: the device has been online since the model serves."""


def judge(evidence: Evidence, config: ProbationConfig) -> Judgement:
    """A fault ends the probation at once; enough inferences, or enough time, confirm it.

    A device that nobody can reach does not confirm: it would not hear an abort either.
    """
    if not evidence.serving or evidence.errors > 0:
        return "fault"
    if evidence.left_s <= 0:
        return "expired"
    proven = evidence.inferences_ok >= config.min_inferences or evidence.elapsed_s >= config.seconds
    return "confirm" if proven and evidence.reachable else "wait"
