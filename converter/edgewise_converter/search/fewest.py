"""The fewest layers to keep in float such that a budget holds: a bisection, then a seeded search by Optuna.

Pure but for Optuna: what is tried is decided by the caller's `holds`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from edgewise_converter.libraries import need, quietly
from edgewise_converter.search.sensitivity import Unit

SEED: Final = 20
_ASKED: Final = 4
"""Proposals of Optuna for each that is tried; the others keep as many layers as are kept already."""
_MORE: Final = 6
"""Units below the bisection's prefix that the search may keep instead."""
Holds = Callable[[tuple[str, ...]], float]
"""How many points a form loses beyond what is allowed; at most 0 where the budget holds."""


def fewest(ranked: Sequence[Unit], excess: Holds, trials: int) -> tuple[str, ...] | None:
    """Layers to keep, or None where not even keeping all but one unit holds the budget.

    First the shortest prefix of the ranking is found by bisection, which takes one trial for each
    doubling. Then single units are left out of it, and Optuna's TPE sampler proposes other sets of
    fewer layers, until the trials are used up. Equal inputs give equal results.

    Args:
        ranked: units, the most damaging first.
        excess: tries one set of layers.
        trials: at most so many are tried.
    """
    tried: dict[frozenset[int], float] = {}

    def attempt(chosen: frozenset[int]) -> bool:
        if chosen not in tried:
            tried[chosen] = excess(_layers(ranked, chosen))
        return tried[chosen] <= 0

    best = _prefix(len(ranked), attempt, lambda: len(tried) < trials)
    if best is None:
        return None
    _refine(ranked, best, attempt, tried, trials)
    holding = [chosen for chosen, over in tried.items() if over <= 0]
    return _layers(ranked, min(holding, key=lambda c: (_count(ranked, c), sorted(c))))


def _prefix(count: int, attempt: Callable[[frozenset[int]], bool], left: Callable[[], bool]) -> frozenset[int] | None:
    """The shortest prefix that holds, if damage falls as more is kept."""
    low, high, best = 1, count - 1, None
    while low <= high and left():
        middle = (low + high) // 2
        if attempt(frozenset(range(middle))):
            best, high = frozenset(range(middle)), middle - 1
        else:
            low = middle + 1
    return best


def _refine(
    ranked: Sequence[Unit],
    start: frozenset[int],
    attempt: Callable[[frozenset[int]], bool],
    tried: dict[frozenset[int], float],
    trials: int,
) -> None:
    optuna = need("optuna")
    with quietly():
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=SEED))
        width = min(len(ranked), len(start) + _MORE)
        for left_out in [None, *sorted(start, reverse=True)]:
            study.enqueue_trial({_name(i): i in start and i != left_out for i in range(width)})
        fewest_kept = _count(ranked, start)
        for _ in range(trials * _ASKED):
            if len(tried) >= trials or fewest_kept == 0:
                return
            trial = study.ask()
            chosen = frozenset(i for i in range(width) if trial.suggest_categorical(_name(i), [False, True]))
            kept = _count(ranked, chosen)
            if chosen not in tried and (kept >= fewest_kept or not chosen):
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                continue
            holds = attempt(chosen)
            study.tell(trial, float(kept) if holds else _penalty(ranked, tried[chosen]))
            if holds:
                fewest_kept = min(fewest_kept, kept)


def _penalty(ranked: Sequence[Unit], excess: float) -> float:
    """Worse than any set that holds, and the worse the more is lost."""
    return float(sum(len(unit.layers) for unit in ranked)) + min(excess, 100.0)


def _layers(ranked: Sequence[Unit], chosen: frozenset[int]) -> tuple[str, ...]:
    return tuple(sorted(name for i in chosen for name in ranked[i].layers))


def _count(ranked: Sequence[Unit], chosen: frozenset[int]) -> int:
    return sum(len(ranked[i].layers) for i in chosen)


def _name(i: int) -> str:
    return f"unit {i}"
