"""A run and profiles in, judged bundles out: the converter's one job, a line a step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from edgewise_profiles.schema import Profile, Target
from edgewise_protocol.bundle import SUFFIX

from edgewise_converter.budget import judge, passes
from edgewise_converter.bundling import assemble, of_run
from edgewise_converter.errors import BudgetError, ConverterError
from edgewise_converter.files import folder_made, remove, write_atomically
from edgewise_converter.hardware import is_profiles_hardware, read_host
from edgewise_converter.plan import Step, plan
from edgewise_converter.report import BundleReport, encode_report
from edgewise_converter.run_directory import open_run
from edgewise_converter.run_record import MAX_VERSION
from edgewise_converter.workshop import Progress, Workshop
from edgewise_converter.writing import write_proven

REPORT_SUFFIX: Final = ".report.json"
_MAX_PROFILES: Final = 100


def convert(
    run_dir: Path,
    profile: Profile,
    out_dir: Path,
    *,
    version: int,
    precision: str | None = None,
    progress: Progress | None = None,
) -> BundleReport:
    """Convert a run's model for one profile; see `convert_many`."""
    return convert_many(run_dir, [profile], out_dir, version=version, precision=precision, progress=progress)[0]


def convert_many(
    run_dir: Path,
    profiles: Sequence[Profile],
    out_dir: Path,
    *,
    version: int,
    precision: str | None = None,
    progress: Progress | None = None,
    allow_failed_gate: bool = False,
) -> list[BundleReport]:
    """Convert a run's model for several profiles, sharing what is the same for them.

    For each that keeps its budget, `<model>-<version>-<profile>.ewb` and a report beside it are
    written. Equal inputs give a bundle of equal bytes.

    Args:
        run_dir: a run directory, as the trainer writes it.
        profiles: at least one.
        out_dir: made if it is not there.
        version: of the model, from 1.
        precision: `int8`, `onnx-float16`, ...; each profile's default if None.
        progress: called with what is being done, and the share of the whole that is behind.
        allow_failed_gate: convert a run that did not pass its acceptance gate, too.

    Returns:
        one report a profile, in the same order.

    Raises:
        RunError, GateError: the run cannot be converted.
        NoTargetError: a profile does not allow the precision.
        PassError, EngineError: a conversion failed.
        BudgetError: some missed their budget. Their bundles are not there, also none of an
            earlier call under the same name; those that passed are.
        WriteError, MissingExtraError.
    """
    _check_arguments(profiles, version)
    targets = [profile.target(precision) for profile in profiles]
    run = open_run(run_dir, allow_failed_gate=allow_failed_gate)
    workshop = Workshop(run)
    reports: list[BundleReport] = []
    with folder_made(out_dir):
        for done, (profile, target) in enumerate(zip(profiles, targets, strict=True)):
            share = _Share(progress, profile.id, done, len(profiles))
            reports.append(_convert_one(workshop, profile, target, out_dir, version, share))
    if progress is not None:
        progress("done", 1.0)
    refused = [report for report in reports if not report.passed]
    if refused:
        raise BudgetError(_refusal(refused), reports)
    return reports


class _Share:
    """The part of a whole progress that one profile's work is."""

    def __init__(self, progress: Progress | None, profile: str, done: int, total: int) -> None:
        self._progress, self._profile, self._done, self._total = progress, profile, done, total

    def __call__(self, stage: str, fraction: float) -> None:
        if self._progress is not None:
            self._progress(f"{self._profile}: {stage}", (self._done + fraction) / self._total)


def _convert_one(
    workshop: Workshop, profile: Profile, target: Target, out_dir: Path, version: int, progress: Progress
) -> BundleReport:
    steps: tuple[Step, ...] = plan(profile, target)
    finished = workshop.finish(steps, progress)
    host = read_host()
    binding = is_profiles_hardware(profile, host)
    checks = judge(
        profile,
        target.precision,
        finished.quality,
        model_size=len(finished.artifact.data),
        latency_ms=finished.latency_ms,
        latency_binding=binding,
    )
    record = workshop.run.record
    bundle_file = out_dir / f"{record.model}-{version}-{profile.id}{SUFFIX}"
    report_file = bundle_file.with_name(bundle_file.name.removesuffix(SUFFIX) + REPORT_SUFFIX)
    report = BundleReport(
        model=record.model,
        version=version,
        path="",
        sha256="",
        size_bytes=0,
        model_size_bytes=len(finished.artifact.data),
        profile=profile.id,
        profile_sha256=profile.sha256,
        format=target.format,
        precision=target.precision,
        engine=finished.engine,
        engine_version=finished.engine_version,
        quality=finished.quality,
        latency_ms=round(finished.latency_ms, 4),
        latency_binding=binding,
        checks=checks,
        passed=passes(checks),
        run=record.run,
        host=host,
        seconds=finished.seconds,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if not report.passed:
        remove(bundle_file, report_file)
        return report
    progress("writing the bundle", 0.95)
    start = time.perf_counter()
    contents = assemble(of_run(workshop.run, finished, profile, host), profile, target, version)
    digest, size = write_proven(bundle_file, contents)
    seconds = finished.seconds | {"bundle": round(time.perf_counter() - start, 3)}
    report = msgspec.structs.replace(report, path=str(bundle_file), sha256=digest, size_bytes=size, seconds=seconds)
    kept = msgspec.structs.replace(report, path=bundle_file.name)
    write_atomically(report_file, lambda out: out.write(encode_report(kept)))
    return report


def _refusal(refused: Sequence[BundleReport]) -> str:
    return "; ".join(
        f"{report.model} {report.version} misses the budget of {report.profile}: {', '.join(report.misses())}"
        for report in refused
    )


def _check_arguments(profiles: Sequence[Profile], version: int) -> None:
    if not 1 <= len(profiles) <= _MAX_PROFILES or len({p.id for p in profiles}) != len(profiles):
        raise ConverterError(f"between 1 and {_MAX_PROFILES} different profiles are needed; {len(profiles)} were given")
    if not 1 <= version <= MAX_VERSION:
        raise ConverterError(f"a version is between 1 and {MAX_VERSION}; {version} was given")
