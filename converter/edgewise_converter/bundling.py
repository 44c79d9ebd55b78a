"""From a finished form to the bundle's manifest and files. Pure: equal inputs give equal bytes."""

from __future__ import annotations

from typing import Final, NamedTuple

from edgewise_profiles.schema import Profile, Target
from edgewise_protocol.bundle import file_entry
from edgewise_protocol.manifest import SPEC_VERSION, Budget, Manifest, Requirements

from edgewise_converter import provenance
from edgewise_converter.golden import GOLDEN_FILE
from edgewise_converter.run_directory import Run
from edgewise_converter.workshop import Finished

BASELINE_FILE: Final = "baseline.json"
_KIB: Final = 1024


class Contents(NamedTuple):
    """A bundle before it is written."""

    manifest: Manifest
    files: dict[str, bytes]


def assemble(run: Run, profile: Profile, target: Target, finished: Finished, version: int) -> Contents:
    """An inference bundle.

    Args:
        run: where the model comes from.
        profile: what it is for.
        target: the form, one of the profile's.
        finished: the model in that form, measured.
        version: of the model.
    """
    record = run.record
    model_file = f"model.{target.format}"
    lineage = lineage_of(run) | {"profile_sha256": profile.sha256}
    metrics = metrics_of(finished)
    files = {
        model_file: finished.artifact.data,
        GOLDEN_FILE: finished.golden,
        BASELINE_FILE: finished.baseline,
        provenance.PROVENANCE_FILE: provenance.statement(
            {model_file: finished.artifact.data},
            {
                **lineage,
                "kind": "inference",
                "model": record.model,
                "version": version,
                "profile": profile.id,
                "precision": target.precision,
                "measured": {**metrics, "samples": finished.quality.samples},
            },
        ),
    }
    manifest = Manifest(
        spec_version=SPEC_VERSION,
        kind="inference",
        model=record.model,
        version=version,
        profile=profile.id,
        requires=requirements(profile, target),
        files=tuple(file_entry(name, data) for name, data in sorted(files.items())),
        task=record.task,
        labels=record.labels,
        inputs=(record.input,),
        outputs=(record.output,),
        format=target.format,
        precision=target.precision,
        model_file=model_file,
        budget=Budget(
            size_bytes=profile.budget.model_size_kib * _KIB,
            latency_ms=profile.budget.latency_ms,
            memory_mib=profile.budget.memory_mib,
        ),
        golden=finished.golden_rule,
        baseline_file=BASELINE_FILE,
        provenance_file=provenance.PROVENANCE_FILE,
        lineage=lineage,
        metrics=metrics,
    )
    return Contents(manifest, files)


def requirements(profile: Profile, target: Target) -> Requirements:
    """What a device must have for this form, from the profile."""
    engine = profile.engine(target.engine)
    return Requirements(
        engine=engine.name,
        engine_min=engine.min,
        engine_below=engine.below,
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


def metrics_of(finished: Finished) -> dict[str, float]:
    """What was measured on held-out data and does not depend on the host's speed."""
    quality = finished.quality
    named = {
        "accuracy": quality.accuracy,
        "accuracy_float": quality.accuracy_float,
        "agreement": quality.agreement,
        "rms_error": float(f"{quality.rms_error:.4g}"),
    }
    return {name: value for name, value in named.items() if value is not None}
