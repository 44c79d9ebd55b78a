"""The fewest layers to keep in float such that a budget holds.

A bisection of a ranking, a greedy descent from what it finds, swaps, then a seeded search by Optuna.
Pure but for Optuna: what is tried is decided by the caller's `excess`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Final

from edgewise_converter.libraries import need, quietly
from edgewise_converter.search.sensitivity import Unit

SEED: Final = 20
_ASKED: Final = 4
"""Proposals of Optuna for each that is tried; the others keep more layers than are kept already."""
_SPARED: Final = 3
"""One part in so many of what the descent leaves is Optuna's; swaps take the others."""
_MORE: Final = 6
"""Units below the bisection's prefix that the search may keep instead."""
Excess = Callable[[tuple[str, ...]], float]
"""How many points a form with these layers in float loses beyond what is allowed; at most 0 where the budget holds."""
_Set = frozenset[int]


class Hunt:
    """A search of one form's sets; equal inputs give equal results.

    Args:
        ranked: units, the most damaging first.
        excess: tries one set of layers.
        left: how many more may be tried. What was tried is not asked for again.
    """

    def __init__(self, ranked: Sequence[Unit], excess: Excess, left: Callable[[], int]) -> None:
        self._ranked, self._excess, self._left = ranked, excess, left
        self._tried: dict[_Set, float] = {}
        self._best: _Set | None = None

    @property
    def count(self) -> int | None:
        """Layers of the smallest set that was found to hold; None without one."""
        return None if self._best is None else self._layers(self._best)

    def bisect(self, below: int | None = None) -> None:
        """The shortest prefix of the ranking that holds, if damage falls as more is kept.

        Args:
            below: prefixes of as many layers, and of more, are of no use.
        """
        low, high = 1, len(self._ranked) - 1
        while below is not None and high > 0 and self._layers(frozenset(range(high))) >= below:
            high -= 1
        if high < 1 or not self._left() or not self._holds(frozenset(range(high))):
            return  # one trial tells that there is no hope
        high -= 1
        while low <= high and self._left():
            middle = (low + high) // 2
            if self._holds(frozenset(range(middle))):
                high = middle - 1
            else:
                low = middle + 1

    def refine(self) -> None:
        """Smaller sets than the prefix, and others that are as small."""
        if self._best is None:
            return
        width = min(len(self._ranked), len(self._best) + _MORE)
        self._drop(self._best)
        spared = self._left() // _SPARED
        before = None
        while before != self._best:
            before = self._best
            for chosen in self._swaps(before, width):
                if self._left() <= spared:
                    break
                if self._holds(chosen) and self._best != before:
                    self._drop(chosen)
                    break
        self._propose(width)

    def sets(self, limit: int) -> tuple[tuple[str, ...], ...]:
        """Sets of the fewest layers that hold, at most so many, those that lose least first."""
        fewest = self.count
        holding = [(over, sorted(c)) for c, over in self._tried.items() if over <= 0 and self._layers(c) == fewest]
        return tuple(self._names(frozenset(chosen)) for _over, chosen in sorted(holding)[:limit])

    def _holds(self, chosen: _Set) -> bool:
        if chosen not in self._tried:
            self._tried[chosen] = self._excess(self._names(chosen))
        holds = self._tried[chosen] <= 0
        if holds and (self._best is None or self._layers(chosen) < self._layers(self._best)):
            self._best = chosen
        return holds

    def _drop(self, best: _Set) -> None:
        """Leave out one after another, the least damaging first."""
        for i in sorted(best, reverse=True):
            if len(best) > 1 and self._left() and self._holds(best - {i}):
                best -= {i}

    def _swaps(self, best: _Set, width: int) -> list[_Set]:
        """Two members for another unit, then one for one; those first that should lose least.

        Effects are taken to add up. What a member is worth was measured when it alone was left out;
        what another unit is worth, is its cost, on the scale of the members'.
        """
        worth = {i: self._tried.get(best - {i}, self._tried[best]) - self._tried[best] for i in best}
        scale = max(sum(worth.values()), 0.0) / (sum(self._ranked[i].cost for i in best) or 1.0)
        others = [i for i in range(width) if i not in best]
        found: list[_Set] = []
        for out in (2, 1):
            guessed = [
                (sum(worth[i] for i in gone) - scale * self._ranked[o].cost, sorted(best - {*gone} | {o}))
                for gone in combinations(sorted(best), out)
                for o in others
            ]
            fitting = [frozenset(c) for _, c in sorted(guessed) if self._layers(frozenset(c)) <= self._layers(best)]
            found += [c for c in fitting if c not in self._tried][: len(best)]
        return found

    def _propose(self, width: int) -> None:
        """Optuna's sets of as many layers or fewer, near the best."""
        optuna = need("optuna")
        with quietly():
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=SEED))
            space = {_name(i): optuna.distributions.CategoricalDistribution([False, True]) for i in range(width)}
            for chosen, over in self._tried.items():
                if max(chosen) < width:
                    told = {_name(i): i in chosen for i in range(width)}
                    study.add_trial(
                        optuna.trial.create_trial(params=told, distributions=space, value=self._value(chosen, over))
                    )
            for _ in range(_ASKED * self._left()):
                if not self._left():
                    return
                trial = study.ask(space)
                chosen = frozenset(i for i in range(width) if trial.params[_name(i)])
                known = chosen in self._tried
                if not chosen or (not known and self._layers(chosen) > (self.count or 0)):
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    continue
                self._holds(chosen)
                study.tell(trial, self._value(chosen, self._tried[chosen]))

    def _value(self, chosen: _Set, over: float) -> float:
        """Fewer are better; one that does not hold is worse than any that does, and the worse the more is lost."""
        if over <= 0:
            return float(self._layers(chosen))
        return float(sum(len(unit.layers) for unit in self._ranked)) + min(over, 100.0)

    def _names(self, chosen: _Set) -> tuple[str, ...]:
        return tuple(sorted(name for i in chosen for name in self._ranked[i].layers))

    def _layers(self, chosen: _Set) -> int:
        return sum(len(self._ranked[i].layers) for i in chosen)


def _name(i: int) -> str:
    return f"unit {i}"
