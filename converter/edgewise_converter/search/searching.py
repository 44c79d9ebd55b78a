"""The search for one profile, a line a step: make, weigh, judge, time, choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from edgewise_profiles.schema import Profile, Target

from edgewise_converter.errors import ConverterError, MissingExtraError, PassError, UnchangedError
from edgewise_converter.hardware import is_profiles_hardware
from edgewise_converter.importing.model_file import MAX_IR, MAX_OPSET
from edgewise_converter.metrics.score import Score
from edgewise_converter.metrics.source_check import check_source
from edgewise_converter.passes.artifact import Artifact
from edgewise_converter.passes.onnx_facts import versions
from edgewise_converter.reporting.details import LayerDamage
from edgewise_converter.search import judging
from edgewise_converter.search.bench import Bench, Made
from edgewise_converter.search.candidates import Candidate, Family, Origin, candidates, contained
from edgewise_converter.search.judging import Trial
from edgewise_converter.search.mixed import Bounds, mend, worth_mending
from edgewise_converter.search.result import Objective, SearchResult
from edgewise_converter.sources.enough import doubts
from edgewise_converter.sources.model import Model

Progress = Callable[[str, float], None]
Stands = Callable[[Candidate, Made, Score], str]
TRIALS: Final = 24
MAX_TRIALS: Final = 500
OWN: Final = "the profile's own hardware"
MAX_PROOFS: Final = 8
"""Winners that may fail to prove themselves, one after another, before only float forms are asked; and of those."""
_TIMING: Final = 0.85
_PROVING: Final = 0.93
"""Shares of the work that are behind."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What the user asks for."""

    objective: Objective = "latency"
    accuracy_drop: float | None = None
    """Points that may be lost; None for the profile's."""
    engine: str | None = None
    """Forms of one engine alone; forms of an optional engine are tried only so."""
    trials: int = TRIALS
    """Of mixed precision."""
    form: str | None = None
    """One form alone (`int8`, `onnx-float16`, `default`), its plain candidate, without a search."""
    min_metric: float | None = None
    """Least value of the metric, in [0, 1]; the float source must reach it too."""

    def allowed(self, profile: Profile) -> float:
        """Points that may be lost."""
        return profile.budget.accuracy_drop if self.accuracy_drop is None else self.accuracy_drop


@dataclass(frozen=True, slots=True)
class Found:
    """What a search ends with."""

    result: SearchResult
    winner: Candidate | None
    """None where nothing is within the profile's budgets."""
    made: Made | None
    layers: dict[str, tuple[LayerDamage, ...]]
    """Of mixed forms, by name: what each layer was found to cost."""


def search(bench: Bench, profile: Profile, aim: Aim, stands: Stands, progress: Progress) -> Found:
    """Try every candidate that the profile allows.

    Args:
        bench: the model's.
        profile: the target.
        aim: what the user asks for.
        stands: proves a winner: why it cannot be bundled, empty where it can. The next best is asked then.
        progress: called with what is tried, and the share of the work that is behind.

    Raises:
        PassError: the profile allows no form that this model can take.
        EngineError, MetricError: the source fails on the held-out samples, or nothing can be judged by its answers.
        MissingExtraError: a library that every candidate needs is not installed.
    """
    model = bench.model
    wanted = _wanted(candidates(profile, origin_of(model)), aim, profile)
    answers = model.reference_outputs()
    told = check_source(model.metric, {name: answers[name] for name in model.judged}, model.y, model.heldout.feeds)
    made: dict[str, Made] = {}
    trials = _judge(bench, wanted, profile, aim, made, progress)
    layers: dict[str, tuple[LayerDamage, ...]] = {}
    if aim.form is None:
        trials += _mix(bench, trials, profile, aim, made, layers, progress)
        trials += _contain(bench, trials, profile, aim, made, progress)
    progress("timing the finalists in turn", _TIMING)
    trials = _timed(bench, trials, profile, made)
    progress("proving the winner", _PROVING)
    trials, winner = _prove(trials, aim, made, stands)
    baseline = judging.baseline_of(trials, aim.objective)
    own = is_profiles_hardware(profile, bench.host)
    result = SearchResult(
        model=model.name,
        profile=profile.id,
        objective=aim.objective,
        accuracy_drop=aim.allowed(profile),
        metric=model.metric,
        samples=len(model.heldout),
        baseline=baseline.candidate.name if baseline else "",
        rows=judging.rows(trials, aim.objective),
        winner=winner.candidate.name if winner else "",
        host=bench.host,
        measured_on=f"{OWN if own else 'host'} ({bench.host.cpu or bench.host.machine})",
        latency_binding=own,
        notes=(
            *model.notes,
            *told,
            *doubts(model, _told(winner, trials), aim.allowed(profile)),
            *_slow_here(winner, profile, binding=own),
        ),
    )
    if winner is None:
        return Found(result, None, None, layers)
    return Found(result, winner.candidate, made[winner.candidate.name], layers)


def _told(winner: Trial | None, trials: Sequence[Trial]) -> Score | None:
    """The winner's score, or any where nothing won."""
    return winner.score if winner else next((t.score for t in trials if t.score), None)


_SOURCES: Final[dict[Family, tuple[str, ...]]] = {
    "torch": ("a run", "a module:factory", "a .pt2 file"),
    "onnx": ("a float .onnx file",),
    "tflite": ("a .tflite file",),
}


def _slow_here(winner: Trial | None, profile: Profile, *, binding: bool) -> tuple[str, ...]:
    """What is to be said of a winner that misses its latency budget where that does not bind."""
    if binding or winner is None or not (reason := judging.latency_reason(winner.latency_ms, profile.budget)):
        return ()
    return (f"on this machine {reason}, which binds on its own hardware alone: measure there with `edgewise bench`",)


def chosen(model: Model, profile: Profile, form: str) -> Candidate:
    """The form that is made of a model without a search.

    Args:
        model: any.
        profile: the target.
        form: `default`, a precision (`int8`), or a format and precision (`onnx-int8`).

    Raises:
        NoTargetError: the profile allows no such form.
        PassError: no chain of passes makes it.
    """
    return _wanted(candidates(profile, origin_of(model)), Aim(form=form), profile)[0]


def origin_of(model: Model) -> Origin:
    """What a model's candidates begin from."""
    if not isinstance(model.origin, Artifact):
        return Origin("torch")
    too_new = False
    if model.origin.format == "onnx":
        opset, ir_version = versions(model.origin.data)
        too_new = opset > MAX_OPSET or ir_version > MAX_IR
    return Origin(model.family, model.origin.precision, too_new)


def _wanted(found: Sequence[Candidate], aim: Aim, profile: Profile) -> tuple[Candidate, ...]:
    if not found:
        allowed = ", ".join(f"{t.format}-{t.precision}" for t in profile.targets)
        sources = [name for family, names in _SOURCES.items() if candidates(profile, Origin(family)) for name in names]
        parts = " or ".join(filter(None, (", ".join(sources[:-1]), *sources[-1:]))) or "nothing that convert reads"
        raise PassError(
            f"no chain of passes makes one of {profile.id}'s forms ({allowed}) of this model; they are made of {parts}"
        )
    if aim.engine is not None:
        found = [c for c in found if c.engine == aim.engine]
        if not found:
            raise PassError(f"{profile.id} has no form of the engine {aim.engine} that this model can take")
    else:
        found = [c for c in found if not profile.engine(c.engine).optional] or list(found)
    if aim.form is None:
        return tuple(found)
    named = _named(profile, aim.form)
    for target in named:
        plain = [c for c in found if (c.engine, c.precision) == (target.engine, target.precision)]
        if plain:
            return (plain[0],)
    told = " or ".join(f"{t.format}-{t.precision}" for t in named)
    raise PassError(f"no chain of passes makes {told} of this model; {profile.id} can have {_names(found)} of it")


def _named(profile: Profile, form: str) -> tuple[Target, ...]:
    """The profile's targets that a form names, its first choice first; all for `default`."""
    if form == "default":
        return profile.targets
    first = profile.target(form)
    return (first, *(t for t in profile.targets if t != first and form == t.precision))


def _names(found: Sequence[Candidate]) -> str:
    return ", ".join(dict.fromkeys(f"{c.format}-{c.precision}" for c in found))


def _judge(
    bench: Bench, wanted: Sequence[Candidate], profile: Profile, aim: Aim, made: dict[str, Made], progress: Progress
) -> list[Trial]:
    trials: list[Trial] = []
    first: dict[str, str] = {}
    for done, candidate in enumerate(wanted):
        progress(f"trying {candidate.name}", 0.55 * done / len(wanted))
        trial = judge_one(bench, candidate, profile, aim, made)
        if candidate.name in made and not trial.refused:
            other = first.setdefault(f"{candidate.engine} {made[candidate.name].sha256}", candidate.name)
            if other != candidate.name:
                trial = trial.out(f"the same file as {other}", "double")
        trials.append(trial)
    return trials


def judge_one(bench: Bench, candidate: Candidate, profile: Profile, aim: Aim, made: dict[str, Made]) -> Trial:
    """Make one candidate, weigh it, run it: what fails is a reason, no error."""
    trial = Trial(candidate)
    try:
        found = made[candidate.name] = bench.make(candidate)
        trial = replace(trial, size_bytes=len(found.artifact.data))
        if reason := judging.size_reason(len(found.artifact.data), profile.budget):
            return trial.out(reason, "size")
        score = bench.score(candidate, found)
    except UnchangedError as error:
        return trial.out(f"nothing changed: {error}", "unchanged")
    except ConverterError as error:
        return trial.out(str(error), error.code.split("-")[0])
    trial = replace(trial, score=score)
    reason = judging.accuracy_reason(score, aim.allowed(profile)) or judging.least_reason(score, aim.min_metric)
    return trial.out(reason, "accuracy")


def _contain(
    bench: Bench, trials: Sequence[Trial], profile: Profile, aim: Aim, made: dict[str, Made], progress: Progress
) -> list[Trial]:
    """The forms that are in, once more in onnxruntime's own container."""
    inside = [c for t in trials if not t.refused and (c := contained(t.candidate)) is not None]
    found = []
    for done, candidate in enumerate(inside):
        progress(f"trying {candidate.name}", 0.75 + 0.1 * done / len(inside))
        found.append(judge_one(bench, candidate, profile, aim, made))
    return found


def _mix(
    bench: Bench,
    trials: Sequence[Trial],
    profile: Profile,
    aim: Aim,
    made: dict[str, Made],
    layers: dict[str, tuple[LayerDamage, ...]],
    progress: Progress,
) -> list[Trial]:
    """Forms that lose too much, with their most sensitive layers in float."""
    found = []
    groups = worth_mending(trials)
    for place, bases in enumerate(groups):
        say = partial(_within, progress, 0.55 + 0.2 * place / len(groups), 0.2 / len(groups))
        stem = replace(bases[0].candidate, name=f"{bases[0].candidate.name}, mixed")
        try:
            mixed = mend(bench, bases, Bounds(aim.allowed(profile), aim.min_metric), aim.trials, say)
        except MissingExtraError:
            raise
        except ConverterError as error:
            found.append(Trial(stem).out(str(error), "pass"))
            continue
        if not mixed:
            reason = "no set of layers in float that was tried keeps the budget and leaves anything quantized"
            found.append(Trial(stem).out(reason, "accuracy"))
        for form in mixed:
            layers[form.candidate.name] = form.layers
            found.append(judge_one(bench, form.candidate, profile, aim, made))
    return found


def _within(progress: Progress, start: float, width: float, text: str, share: float) -> None:
    progress(text, start + width * share)


def _prove(trials: list[Trial], aim: Aim, made: dict[str, Made], stands: Stands) -> tuple[list[Trial], Trial | None]:
    """The best form that stands, and the trials with those marked that did not."""
    for failed in range(2 * MAX_PROOFS):
        if failed == MAX_PROOFS:  # float is the fallback, and must have its turn
            left = "not tried: too many before it did not prove themselves"
            trials = [t if t.refused or t.candidate.is_float else t.out(left, "unproven") for t in trials]
        winner = judging.winner_of(trials, aim.objective)
        if winner is None or winner.score is None:
            return trials, None
        reason = stands(winner.candidate, made[winner.candidate.name], winner.score)
        if not reason:
            return trials, winner
        trials = [t.out(reason, "unproven") if t is winner else t for t in trials]
    return [t if t.refused else t.out("no float form proved itself", "unproven") for t in trials], None


def _timed(bench: Bench, trials: Sequence[Trial], profile: Profile, made: dict[str, Made]) -> list[Trial]:
    # What stands in for another architecture's file is not what the device will wait for.
    inside = [(t.candidate, made[t.candidate.name]) for t in trials if not t.refused]
    finalists = [(candidate, found) for candidate, found in inside if found.artifact.stand_in is None]
    if not finalists:
        return list(trials)
    latencies = bench.latencies(finalists)
    binding = is_profiles_hardware(profile, bench.host)
    found = []
    for trial in trials:
        if not trial.refused:
            latency = latencies.get(trial.candidate.name)
            reason = judging.latency_reason(latency, profile.budget) if binding else ""
            trial = replace(trial, latency_ms=latency).out(reason, "latency")
        found.append(trial)
    return found
