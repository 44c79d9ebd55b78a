"""Mixed precision: where a quantized form loses too much, the fewest layers that cost the most stay in float."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple

from edgewise_converter.errors import ConverterError
from edgewise_converter.metrics.score import Score
from edgewise_converter.passes.registry import PASSES
from edgewise_converter.reporting.details import LayerDamage
from edgewise_converter.search.bench import Bench
from edgewise_converter.search.candidates import Candidate, keeping, layered
from edgewise_converter.search.fewest import Excess, Hunt
from edgewise_converter.search.judging import Trial
from edgewise_converter.search.sensitivity import Unit, rank

MAX_KINDS: Final = 2
"""An engine's precisions that are mended, the least lossy first."""
MAX_BASES: Final = 3
"""Forms of each that a mixed one may begin from, the least lossy first."""
MAX_SETS: Final = 4
"""Sets of equally few layers that are handed on: which is the fastest, or the smallest, is judged with all forms."""
UNUSABLE: Final = 1e6
Say = Callable[[str, float], None]


class Bounds(NamedTuple):
    """What a form's score is held against."""

    points: float
    """That may be lost."""
    least: float | None = None
    """Value that the metric must reach, in [0, 1]."""

    def excess(self, score: Score) -> float:
        """Points by which the bound that is missed most is missed; at most 0 where both hold."""
        short = -math.inf if self.least is None else 100 * (self.least - score.value)
        return max(score.drop - self.points, short)


class Mixed(NamedTuple):
    """A form with layers in float, and what each layer was found to cost."""

    candidate: Candidate
    layers: tuple[LayerDamage, ...]


def worth_mending(trials: Sequence[Trial]) -> tuple[tuple[Trial, ...], ...]:
    """Forms that miss the accuracy budget alone, and can leave layers in float; a group an engine's precision. Pure.

    An engine's precision of which some form keeps the budget needs no mending. Each group begins with
    its least lossy form.
    """
    good = {_kind(t) for t in trials if not t.refused}
    missed = [
        t
        for t in trials
        if t.score is not None and t.refused and layered(t.candidate) is not None and _kind(t) not in good
    ]
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in sorted(missed, key=lambda t: (t.loss, t.score.relative_error if t.score else 0.0)):
        groups.setdefault(_kind(trial), []).append(trial)
    return tuple(tuple(group[:MAX_BASES]) for group in list(groups.values())[:MAX_KINDS])


@dataclass(slots=True)
class _Budget:
    """What is left to try, of all bases together, and how far it is."""

    trials: int
    say: Say
    spared: int = 0
    done: int = 0
    share: float = 0.0

    def left(self) -> int:
        """How many more sets may be tried now."""
        return max(0, self.trials - self.spared - self.done)

    def tell(self, text: str, share: float) -> None:
        """Say what is done; a share never falls."""
        self.share = max(self.share, share)
        self.say(text, self.share)


def mend(bench: Bench, bases: Sequence[Trial], bounds: Bounds, trials: int, say: Say) -> tuple[Mixed, ...]:
    """Of one of the bases, the forms with the fewest layers in float such that the budget holds; none where none does.

    The shortest prefix of a ranking is looked for from every base; the one that needs the fewest layers
    is then refined. Bases with the same layers are tried with what is found: they may be faster.

    Args:
        bench: the model's.
        bases: forms of one engine and precision, the least lossy first.
        bounds: of the score.
        trials: sets that are tried at most, of all bases together.
        say: called with what is done, and the share of it that is behind.

    Raises:
        ConverterError: no base's layers can be told.
    """
    budget = _Budget(trials, say)
    rankings: dict[tuple[str, ...], list[Unit]] = {}
    excesses: dict[str, tuple[Excess, tuple[str, ...]]] = {}
    best: tuple[Candidate, Hunt] | None = None
    for place, base in enumerate(bases):
        form = base.candidate
        layers = _layers_of(bench, form)
        if len(layers) < 2:
            continue
        if layers not in rankings:
            rankings[layers] = rank(bench, form, layers, partial(_ranking, budget, form, (place, len(bases))))
        excess = _excess(bench, form, len(layers), bounds, budget)
        excesses[form.name] = excess, layers
        hunt = Hunt(rankings[layers], excess, budget.left)
        hunt.bisect(below=best[1].count if best else None)
        if hunt.count is not None:
            best = form, hunt
    if best is None:
        return ()
    form, hunt = best
    layers = excesses[form.name][1]
    alike = [
        b.candidate for b in bases if b.candidate != form and excesses.get(b.candidate.name, ((), ()))[1] == layers
    ]
    budget.spared = min(len(alike), trials // 4)
    hunt.refine()
    sets = hunt.sets(MAX_SETS)
    budget.spared = 0
    found = [_mixed(form, kept, rankings[layers], i) for i, kept in enumerate(sets)]
    for other in alike:
        if budget.left() and excesses[other.name][0](sets[0]) <= 0:
            found.append(_mixed(other, sets[0], rankings[layers], 0))
    return tuple(found)


def _ranking(budget: _Budget, form: Candidate, place: tuple[int, int], share: float) -> None:
    budget.tell(f"{form.name}: which layers are sensitive", 0.5 * (place[0] + share) / place[1])


def _layers_of(bench: Bench, candidate: Candidate) -> tuple[str, ...]:
    place = layered(candidate)
    tell = PASSES[candidate.steps[place].name].layers() if place is not None else None
    return tell(bench.before_last(candidate, place)) if place is not None and tell is not None else ()


def _excess(bench: Bench, candidate: Candidate, layers: int, bounds: Bounds, budget: _Budget) -> Excess:
    def excess(kept: tuple[str, ...]) -> float:
        budget.done += 1
        told = f"{candidate.name}: {len(kept)} of {layers} layers in float"
        budget.tell(told, min(budget.done / budget.trials, 1.0))
        form = keeping(candidate, kept)
        try:
            over = bounds.excess(bench.score(form, bench.make(form)))
        except ConverterError:
            return UNUSABLE
        return over if math.isfinite(over) else UNUSABLE

    return excess


def _mixed(candidate: Candidate, kept: tuple[str, ...], ranked: Sequence[Unit], number: int) -> Mixed:
    damage = tuple(
        LayerDamage(layer=name, damage=unit.damage, kept_float=name in kept) for unit in ranked for name in unit.layers
    )
    form = keeping(candidate, kept)
    return Mixed(replace(form, name=f"{form.name}, set {number + 1}") if number else form, damage)


def _kind(trial: Trial) -> tuple[str, str]:
    return trial.candidate.engine, trial.candidate.precision
