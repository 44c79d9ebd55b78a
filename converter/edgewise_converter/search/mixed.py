"""Mixed precision: where a quantized form loses too much, the fewest layers that cost the most stay in float."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from edgewise_converter.errors import ConverterError
from edgewise_converter.passes.registry import PASSES
from edgewise_converter.reporting.details import LayerDamage
from edgewise_converter.search.bench import Bench
from edgewise_converter.search.candidates import Candidate, keeping, layered
from edgewise_converter.search.fewest import fewest
from edgewise_converter.search.judging import Trial
from edgewise_converter.search.sensitivity import rank

MAX_FORMS: Final = 2
"""Forms that are mended: the best of each engine and precision, the least lossy first."""
UNUSABLE: Final = 1e6
Say = Callable[[str, float], None]


class Mixed(NamedTuple):
    """A form with layers in float, and what each layer was found to cost."""

    candidate: Candidate
    layers: tuple[LayerDamage, ...]


def worth_mending(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Forms that miss the accuracy budget alone, and can leave layers in float. Pure.

    An engine's precision of which some form keeps the budget needs no mending.
    """
    good = {_kind(t) for t in trials if not t.refused}
    missed = [
        t
        for t in trials
        if t.score is not None and t.refused and layered(t.candidate) is not None and _kind(t) not in good
    ]
    best: dict[tuple[str, str], Trial] = {}
    for trial in sorted(missed, key=lambda t: t.loss):
        best.setdefault(_kind(trial), trial)
    return tuple(best.values())[:MAX_FORMS]


def mend(bench: Bench, trial: Trial, allowed_points: float, trials: int, say: Say) -> Mixed | None:
    """The trial's form with the fewest layers in float such that the budget holds; None where none does.

    Raises:
        ConverterError: its layers cannot be told.
    """
    candidate = trial.candidate
    place = layered(candidate)
    tell = PASSES[candidate.steps[place].name].layers() if place is not None else None
    if place is None or tell is None:
        return None
    layers = tell(bench.before_last(candidate, place))
    if len(layers) < 2:
        return None
    ranked = rank(
        bench, candidate, layers, lambda share: say(f"{candidate.name}: which layers are sensitive", share / 2)
    )
    done = 0

    def excess(kept: tuple[str, ...]) -> float:
        nonlocal done
        done += 1
        say(f"{candidate.name}: {len(kept)} of {len(layers)} layers in float", 0.5 + min(done / trials, 1.0) / 2)
        form = keeping(candidate, kept)
        try:
            drop = bench.score(form, bench.make(form)).drop
        except ConverterError:
            return UNUSABLE
        return drop - allowed_points if math.isfinite(drop) else UNUSABLE

    kept = fewest(ranked, excess, trials)
    if kept is None:
        return None
    damage = tuple(
        LayerDamage(layer=name, damage=unit.damage, kept_float=name in kept) for unit in ranked for name in unit.layers
    )
    return Mixed(keeping(candidate, kept), damage)


def _kind(trial: Trial) -> tuple[str, str]:
    return trial.candidate.engine, trial.candidate.precision
