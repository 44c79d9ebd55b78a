"""From a judged form to the bundle's manifest and files. Pure: equal inputs give equal bytes.

What a training run and a finished file have in common stands here; `Ready` is what both become.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from edgewise_profiles.schema import Format, Profile, Target
from edgewise_protocol.bundle import file_entry
from edgewise_protocol.manifest import (
    SPEC_VERSION,
    Budget,
    Golden,
    Manifest,
    Numerics,
    Requirements,
    StatePair,
    TensorSpec,
)

from edgewise_converter import provenance
from edgewise_converter.golden import GOLDEN_FILE
from edgewise_converter.run_directory import Run

BASELINE_FILE: Final = "baseline.json"
_KIB: Final = 1024


class Contents(NamedTuple):
    """A bundle before it is written."""

    manifest: Manifest
    files: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Ready:
    """A model in a form, with everything that a bundle says of it."""

    model: str
    task: str
    labels: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    data: bytes
    format: Format
    golden: bytes
    golden_rule: Golden
    baseline: bytes
    """Empty where drift is not watched."""
    lineage: dict[str, str]
    metrics: dict[str, float]
    """Measured on held-out data; nothing that depends on a host's speed."""
    samples: int
    kind: str = "inference"
    """What the provenance calls it."""
    state: tuple[StatePair, ...] = ()
    numerics: Numerics | None = None
    engine_min: str = ""
    """Where the file needs a newer engine than the profile does."""
    engine_below: str = ""
    """Where the file is not read by all engines that the profile allows."""
    more: dict[str, object] = field(default_factory=dict)
    """What else the provenance says: how it was made."""


def assemble(ready: Ready, profile: Profile, target: Target, version: int) -> Contents:
    """An inference bundle.

    Args:
        ready: the model in its form, judged.
        profile: what it is for.
        target: the form, one of the profile's.
        version: of the model.
    """
    model_file = f"model.{ready.format}"
    lineage = ready.lineage | {"profile_sha256": profile.sha256}
    predicate = {
        **lineage,
        "kind": ready.kind,
        "model": ready.model,
        "version": version,
        "profile": profile.id,
        "precision": target.precision,
        "measured": {**ready.metrics, "samples": ready.samples},
        **ready.more,
    }
    files = {
        model_file: ready.data,
        GOLDEN_FILE: ready.golden,
        provenance.PROVENANCE_FILE: provenance.statement({model_file: ready.data}, predicate),
    } | ({BASELINE_FILE: ready.baseline} if ready.baseline else {})
    manifest = Manifest(
        spec_version=SPEC_VERSION,
        kind="inference",
        model=ready.model,
        version=version,
        profile=profile.id,
        requires=requirements(profile, target, ready.engine_min, ready.engine_below),
        files=tuple(file_entry(name, data) for name, data in sorted(files.items())),
        task=ready.task,  # type: ignore[arg-type]  # decoded again, and so checked, when the bundle is written
        labels=ready.labels,
        inputs=ready.inputs,
        outputs=ready.outputs,
        format=ready.format,
        precision=target.precision,
        model_file=model_file,
        budget=Budget(
            size_bytes=profile.budget.model_size_kib * _KIB,
            latency_ms=profile.budget.latency_ms,
            memory_mib=profile.budget.memory_mib,
        ),
        golden=ready.golden_rule,
        numerics=ready.numerics,
        state=ready.state,
        baseline_file=BASELINE_FILE if ready.baseline else "",
        provenance_file=provenance.PROVENANCE_FILE,
        lineage=lineage,
        metrics=ready.metrics,
    )
    return Contents(manifest, files)


def requirements(profile: Profile, target: Target, engine_min: str = "", engine_below: str = "") -> Requirements:
    """What a device must have for this form, from the profile; a file may narrow the engine's range."""
    engine = profile.engine(target.engine)
    return Requirements(
        engine=engine.name,
        engine_min=max(engine.min, engine_min, key=_numbers) if engine_min else engine.min,
        engine_below=min(engine.below, engine_below, key=_numbers) if engine_below else engine.below,
        compatible=profile.all_compatible,
        machine=profile.machine,
        cpu_features=profile.cpu.features,
        cpu_any_of=profile.cpu.any_of,
        memory_mib=profile.budget.memory_mib,
    )


def lineage_of(run: Run) -> dict[str, str]:
    """Where a run's model comes from, in strings."""
    record = run.record
    found = {
        "run": record.run,
        "data": record.data.name,
        "data_fingerprint": record.data.fingerprint,
        "config_sha256": record.config_sha256,
        "source_sha256": run.source_sha256,
        "converter": provenance.converter_version(),
    }
    return found | ({"parent": record.parent} if record.parent else {})


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
