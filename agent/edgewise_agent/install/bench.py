"""A bundle timed on this device, in the self-test's process, and held against its own budget."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from edgewise_protocol.bundle import BundleReader
from edgewise_protocol.facts import DeviceFacts, fits
from edgewise_protocol.latencies import Bin, Latencies, bars
from edgewise_protocol.manifest import MANIFEST_FILE, Manifest, encode_manifest

from edgewise_agent.config import SelfTestConfig
from edgewise_agent.engines import installed
from edgewise_agent.errors import BundleMismatchError, SelfTestCrashError, storage_error
from edgewise_agent.identity.facts import detect
from edgewise_agent.install.self_test import SelfTester

_KIB: Final = 1024


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """A figure against the bundle's budget."""

    name: str
    value: float
    bound: float
    unit: str
    passed: bool


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle costs here."""

    model: str
    version: int
    profile: str
    format: str
    precision: str
    engine: str
    engine_version: str
    size_bytes: int
    """Of the model file."""
    threads: int
    load_ms: float
    peak_mib: float
    latencies: Latencies
    histogram: tuple[Bin, ...]
    bounds: tuple[Bound, ...]
    binding: bool
    """Whether this machine is what the bundle is for, so that its budget binds."""
    measured_on: str
    passed: bool


def bench(path: Path, folder: Path, seconds: float, threads: int, board: str = "") -> Bench:
    """Measure a bundle.

    Args:
        path: the bundle.
        folder: an empty one to unpack it into.
        seconds: for how long calls are timed.
        threads: of one call.
        board: profile id of this board, where the device tree does not name it.

    Raises:
        BundleError, MalformedError, BundleMismatchError: it is damaged, or holds no model to run.
        RefusedError, SelfTestCrashError, SelfTestTimeoutError: it does not work here.
        StorageError: it cannot be read, or the folder not be written.
    """
    manifest = _unpack(path, folder)
    facts = detect(folder, installed(), board=board)
    tester = SelfTester(SelfTestConfig(), threads, simulated=False)
    verdict = tester.bench(folder, seconds)
    if verdict.latencies is None:
        raise SelfTestCrashError("the self-test's process timed no call")
    size = next(entry.size for entry in manifest.files if entry.name == manifest.model_file)
    bounds = judge(manifest, size, verdict.latencies.median_ms, verdict.measured["peak_mib"])
    reasons = fits(facts, manifest)
    return Bench(
        model=manifest.model,
        version=manifest.version,
        profile=manifest.profile,
        format=manifest.format,
        precision=manifest.precision,
        engine=manifest.requires.engine,
        engine_version=facts.engines.get(manifest.requires.engine, ""),
        size_bytes=size,
        threads=threads,
        load_ms=round(verdict.measured["load_ms"], 3),
        peak_mib=round(verdict.measured["peak_mib"], 1),
        latencies=verdict.latencies,
        histogram=verdict.histogram,
        bounds=bounds,
        binding=not reasons,
        measured_on=_where(facts, manifest, reasons),
        passed=bool(reasons) or all(bound.passed for bound in bounds),
    )


def judge(manifest: Manifest, size: int, median_ms: float, peak_mib: float) -> tuple[Bound, ...]:
    """The figures against the bundle's budget; a budget of 0 bounds nothing. Pure."""
    budget = manifest.budget
    found = (
        ("model size", size / _KIB, budget.size_bytes / _KIB, "KiB"),
        ("median latency", median_ms, budget.latency_ms, "ms"),
        ("peak memory", peak_mib, float(budget.memory_mib), "MiB"),
    )
    return tuple(
        Bound(name=name, value=round(value, 6), bound=bound, unit=unit, passed=value <= bound)
        for name, value, bound, unit in found
        if bound > 0
    )


def render(found: Bench) -> str:
    """The figures for people."""
    times = found.latencies
    lines = [
        f"{found.model} {found.version} for {found.profile}: {found.format} {found.precision}, "
        f"{found.size_bytes / _KIB:.1f} KiB, {found.engine} {found.engine_version}, {found.threads} thread(s)",
        f"measured {found.measured_on}",
        f"  median {times.median_ms:.3f} ms, p95 {times.p95_ms:.3f}, p99 {times.p99_ms:.3f}, slowest "
        f"{times.maximum_ms:.3f}, {times.per_second:.0f} calls/s ({times.calls} calls)",
        f"  loads in {found.load_ms:.0f} ms, peak memory {found.peak_mib:.0f} MiB",
        *(f"  {line}" for line in bars(found.histogram)),
    ]
    for bound in found.bounds:
        verdict = ("kept" if bound.passed else "missed") + ("" if found.binding else ", does not bind here")
        lines.append(f"  {bound.name}: {bound.value:.4g} {bound.unit}, at most {bound.bound:.4g}: {verdict}")
    return "\n".join(lines)


def _where(facts: DeviceFacts, manifest: Manifest, reasons: tuple[str, ...]) -> str:
    board = f"on this device ({', '.join(facts.compatible)}, {facts.machine})"
    if not reasons:
        return f"{board}: the budget of {manifest.profile} binds"
    return f"{board}, which is not what the bundle is for: {'; '.join(reasons)}; its budget does not bind"


def _unpack(path: Path, folder: Path) -> Manifest:
    try:
        with path.open("rb") as source:
            reader = BundleReader(source)
            manifest = reader.verify()
            if manifest.kind != "inference":
                raise BundleMismatchError(f"{path.name} is a bundle of kind {manifest.kind}: there is no model to run")
            for entry in manifest.files:
                (folder / entry.name).write_bytes(reader.read(entry.name))
        (folder / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    except OSError as error:
        raise storage_error(f"{path} cannot be read, or {folder} not be written", error) from error
    return manifest
