"""A model and profiles in, one proven bundle a profile out: the search's shell.

A repeat of an unchanged conversion comes from the cache and loads nothing that computes: heavy
modules are imported inside of what needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from edgewise_profiles.schema import Profile

from edgewise_converter.cache import Cache
from edgewise_converter.errors import ConverterError, WriteError
from edgewise_converter.files import folder_made, remove, write_atomically
from edgewise_converter.hardware import Host, is_instruction_set, read_host
from edgewise_converter.search.outcome import Kept, Outcome, encode_outcome
from edgewise_converter.search.request import Request, result_key, with_budget

if TYPE_CHECKING:
    from edgewise_converter.search.bench import Bench

SUFFIX: Final = ".ewb"
REPORT: Final = ".report.json"
BESIDE: Final = (REPORT, ".report.html", ".report.png")
_MAX_PROFILES: Final = 100
_MAX_VERSION: Final = 2**31 - 1
_kept = msgspec.msgpack.Decoder(Kept)
Progress = Callable[[str, float], None]


def convert_model(
    request: Request,
    profiles: Sequence[Profile],
    out_dir: Path,
    *,
    cache: Cache,
    reports_dir: Path | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Find, prove and bundle the best form for each profile.

    `<model>-<version>-<profile>.ewb` is written into `out_dir`, whole or not at all, and its reports
    beside it or into `reports_dir`.

    Returns:
        one outcome a profile, in the same order; `passed` tells whether there is a bundle.

    Raises:
        RunError, GateError, ModelFileError, SampleError, MetricError: the model or its samples.
        NoTargetError: a profile does not allow the form that was asked for.
        PassError: a profile allows no form that the model can take.
        EngineError: a bundle does not prove itself.
        WriteError: the disk refuses.
        MissingExtraError, ConverterError.
    """
    _check(request, profiles)
    profiles = [with_budget(profile, request) for profile in profiles]
    tell = progress or (lambda _text, _fraction: None)
    host = read_host()
    work = _Work(request, cache, host)
    beside = reports_dir or out_dir
    found = []
    with folder_made(out_dir), folder_made(beside):
        for done, profile in enumerate(profiles):
            share = partial(_tell_share, tell, profile.id, done, len(profiles))
            key = result_key(request, profile, host, _provable(request, profile, host))
            kept = cache.get("results", key) if key else None
            repeat = _kept.decode(kept) if kept is not None else None
            result = repeat or work.convert(profile, share)
            if key and repeat is None:
                cache.put("results", key, msgspec.msgpack.encode(result))
            found.append(_write(result, out_dir, beside, cached=repeat is not None))
    tell("done", 1.0)
    return found


class _Work:
    """The heavy part: one model, opened when the first profile needs it."""

    def __init__(self, request: Request, cache: Cache, host: Host) -> None:
        self._request, self._cache, self._host = request, cache, host
        self._bench: Bench | None = None

    def convert(self, profile: Profile, progress: Progress) -> Kept:
        """Search, and make the winner's bundle and reports."""
        from edgewise_converter.search.bundle import Bundler
        from edgewise_converter.search.reports import reports_of
        from edgewise_converter.search.searching import Aim, search

        request = self._request
        aim = Aim(
            objective=request.objective,
            accuracy_drop=request.accuracy_drop,
            engine=request.engine,
            trials=request.trials,
            form=request.form,
            min_metric=request.min_metric,
        )
        bench = self._opened(progress)
        bundler = Bundler(bench, profile, request, aim.allowed(profile))
        found = search(bench, profile, aim, bundler.try_one, progress)
        outcome = Outcome(
            model=bench.model.name,
            version=request.version,
            profile=profile.id,
            passed=False,
            search=found.result,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if found.made is None or (made := bundler.made) is None:
            return Kept(outcome=outcome, bundle=b"")
        outcome = msgspec.structs.replace(
            outcome,
            passed=True,
            sha256=made.sha256,
            size_bytes=len(made.data),
            model_size_bytes=len(found.made.artifact.data),
            engine=made.manifest.requires.engine,
            engine_version=made.engine_version,
            format=made.manifest.format,
            precision=made.manifest.precision,
            proofs=made.manifest.numerics.proofs if made.manifest.numerics else (),
            unproven=made.unproven,
        )
        progress("drawing the reports", 0.97)
        return Kept(outcome=outcome, bundle=made.data, reports=reports_of(outcome, found, made.manifest, bench))

    def _opened(self, progress: Progress) -> Bench:
        from edgewise_converter.search.bench import Bench
        from edgewise_converter.sources.opening import open_model
        from edgewise_converter.sources.reading import Wanted

        if self._bench is None:
            progress("reading the model", 0.0)
            request = self._request
            model = open_model(
                request.model,
                Wanted(
                    calibration=Path(request.calibration) if request.calibration else None,
                    heldout=Path(request.heldout) if request.heldout else None,
                    state=request.state,
                    name=request.name,
                    task=request.task,
                    labels=request.labels,
                    metric=request.metric,
                    origin=request.origin,
                ),
            )
            self._bench = Bench(model, self._cache, self._host)
        return self._bench


def _write(kept: Kept, out_dir: Path, beside: Path, *, cached: bool) -> Outcome:
    """Put a result's files in place; where there is no bundle, or not all can be written, there are none."""
    outcome = kept.outcome
    stem = f"{outcome.model}-{outcome.version}-{outcome.profile}"
    bundle = out_dir / f"{stem}{SUFFIX}"
    files = (bundle, *(beside / f"{stem}{suffix}" for suffix in BESIDE))
    if not outcome.passed:
        remove(*files)
        return msgspec.structs.replace(outcome, cached=cached)
    told = msgspec.structs.replace(outcome, path=bundle.name)
    try:
        for suffix, data in {**kept.reports, REPORT: encode_outcome(told)}.items():
            write_atomically(beside / f"{stem}{suffix}", partial(_put, data))
        write_atomically(bundle, lambda out: out.write(kept.bundle))
    except BaseException:
        with suppress(WriteError):
            remove(*files)
        raise
    return msgspec.structs.replace(outcome, path=str(bundle), cached=cached)


def _put(data: bytes, out: object) -> None:
    out.write(data)  # type: ignore[attr-defined]  # a binary file


def _tell_share(tell: Progress, profile: str, done: int, total: int, text: str, fraction: float) -> None:
    tell(f"{profile}: {text}", (done + fraction) / total)


def _provable(request: Request, profile: Profile, host: Host) -> str:
    """How a bundle could be proven now: what was unproven must not be repeated once it can be proven."""
    if request.prove == "never":
        return "never"
    from edgewise_converter.proof import sysroot

    found = sysroot.find(profile) if profile.emulation is not None else None
    return f"{is_instruction_set(profile, host)} {found.recipe.digest if found else ''}"


def _check(request: Request, profiles: Sequence[Profile]) -> None:
    if not 1 <= len(profiles) <= _MAX_PROFILES or len({p.id for p in profiles}) != len(profiles):
        raise ConverterError(f"between 1 and {_MAX_PROFILES} different profiles are needed; {len(profiles)} were given")
    if not 1 <= request.version <= _MAX_VERSION:
        raise ConverterError(f"a version is between 1 and {_MAX_VERSION}; {request.version} was given")
    for profile in profiles:
        if request.form not in (None, "default"):
            profile.target(request.form)
