"""Which forms of a model are worth trying for a target. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import msgspec
from edgewise_profiles.schema import EngineName, Format, Precision, Profile

from edgewise_converter.passes.entry import PassEntry
from edgewise_converter.passes.registry import PASSES
from edgewise_converter.search.chains import CHAINS, CONTAINER, FROM_PROFILE, START, WIDENING, Chain, Pass, allowed
from edgewise_converter.search.result import CandidateRecord
from edgewise_converter.search.step import Step

_CONTAINED: Final = ("int8", "int8-dynamic")
"""Forms that gain in onnxruntime's own container."""
Family = Literal["torch", "onnx", "tflite"]


@dataclass(frozen=True, slots=True)
class Origin:
    """What candidates begin from."""

    family: Family
    precision: str = "float32"
    """Of a finished file; what is not float32 stays in its precision."""
    too_new: bool = False
    """Whether an ONNX file's operator set or IR version is above what devices read."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A form, and how it is made."""

    name: str
    steps: tuple[Step, ...]
    engine: EngineName
    format: Format
    precision: Precision
    is_float: bool = False
    """Whether it computes what the source computes, in another file at most."""

    def record(self) -> CandidateRecord:
        """As reports hold it."""
        return CandidateRecord(
            name=self.name,
            engine=self.engine,
            format=self.format,
            precision=self.precision,
            steps=tuple(describe(step) for step in self.steps),
            is_float=self.is_float,
        )


def candidates(profile: Profile, origin: Origin, passes: Mapping[str, PassEntry] = PASSES) -> tuple[Candidate, ...]:
    """All forms that the profile's targets allow from this origin, plain ones first, without doubles.

    Args:
        profile: whose targets they are.
        origin: what the model is.
        passes: the catalogue; a chain with a pass that is not in it is left out.
    """
    found: dict[tuple[Any, ...], Candidate] = {}
    for chain in CHAINS:
        start = START.get((chain.start, origin.family))
        if start is None or not _fits(chain, origin) or not allowed(chain, profile):
            continue
        wanted = (*start, *chain.passes)
        if any(p.name not in passes for p in wanted):
            continue
        for target in profile.targets:
            precision = chain.precision if chain.precision != "as it is" else origin.precision
            if target.precision != precision or target.engine not in chain.engines:
                continue
            steps = tuple(step for p in wanted if (step := _step(p, passes[p.name], profile, origin)) is not None)
            made = Candidate(
                name=f"{target.engine} {target.precision}{', ' + chain.label if chain.label else ''}",
                steps=steps,
                engine=target.engine,
                format=chain.format,
                precision=target.precision,
                is_float=chain.is_float,
            )
            found.setdefault((made.steps, made.engine), made)
    return tuple(found.values())


def keeping(candidate: Candidate, layers: tuple[str, ...], passes: Mapping[str, PassEntry] = PASSES) -> Candidate:
    """The same form with layers left in float, by its last pass that can.

    Raises:
        ValueError: none can.
    """
    place = layered(candidate)
    if place is None:
        raise ValueError(f"{candidate.name} has no pass that can leave layers in float")
    step = candidate.steps[place]
    config = msgspec.structs.replace(step.config, keep_float=layers)
    steps = (*candidate.steps[:place], step._replace(config=config), *candidate.steps[place + 1 :])
    plural = "" if len(layers) == 1 else "s"
    return replace(candidate, name=f"{candidate.name}, {len(layers)} layer{plural} in float", steps=steps)


def contained(candidate: Candidate, passes: Mapping[str, PassEntry] = PASSES) -> Candidate | None:
    """The same form in onnxruntime's own container; None of another engine's form, and of one that computes in float.

    The container keeps onnxruntime from laying float convolutions out for the processor, which costs
    more than it saves.
    """
    if candidate.format != "onnx" or candidate.precision not in _CONTAINED or CONTAINER not in passes:
        return None
    step = Step(CONTAINER, passes[CONTAINER].config())
    return replace(candidate, name=f"{candidate.name}, ort container", steps=(*candidate.steps, step), format="ort")


def layered(candidate: Candidate) -> int | None:
    """The place of the last pass that can leave layers in float."""
    places = [i for i, step in enumerate(candidate.steps) if hasattr(step.config, "keep_float")]
    return places[-1] if places else None


def describe(step: Step) -> str:
    """A pass with those of its settings that are not its defaults, in words."""
    settings = {
        field.name: getattr(step.config, field.name)
        for field in msgspec.structs.fields(step.config)
        if field.required or getattr(step.config, field.name) != field.default
    }
    told = ", ".join(f"{name}={_say(value)}" for name, value in settings.items())
    return f"{step.name}({told})" if told else step.name


def _say(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _fits(chain: Chain, origin: Origin) -> bool:
    """Whether a chain names what is in the file: one that is narrow already is no plain float."""
    narrow = origin.precision != "float32"
    if chain.precision == "as it is":
        return narrow
    return not (narrow and chain.is_float) or any(p.name in WIDENING for p in chain.passes)


def _step(wanted: Pass, entry: PassEntry, profile: Profile, origin: Origin) -> Step | None:
    settings = dict(wanted.settings)
    if (more := FROM_PROFILE.get(wanted.name)) is not None:
        from_profile = more(profile, origin.too_new)
        if from_profile is None:
            return None
        settings = from_profile | settings
    return Step(wanted.name, entry.config(**settings), wanted.optional)
