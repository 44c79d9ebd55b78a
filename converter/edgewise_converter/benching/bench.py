"""Bundles and model files, timed in turn on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
from edgewise_profiles.schema import Profile
from edgewise_protocol.latencies import Bin, Latencies, histogram, summarise

from edgewise_converter.benching.process import BenchProcess
from edgewise_converter.benching.subject import Subject, prepare
from edgewise_converter.benching.where import where
from edgewise_converter.checks import Check, at_most
from edgewise_converter.errors import ConverterError
from edgewise_converter.hardware import Host, read_host

MAX_SUBJECTS: Final = 32
MAX_SECONDS: Final = 3600.0
MAX_THREADS: Final = 64
_ROUND_S: Final = 0.1
_MIN_ROUNDS, _MAX_ROUNDS = 5, 200
_WARM_UP: Final = 0.1
"""Share of the time that is spent before any call counts."""
_KIB: Final = 1024
Progress = Callable[[str, float], None]


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle or model file, measured."""

    name: str
    profile: str
    """Whose budget it was held against; empty for none."""
    format: str
    precision: str
    engine: str
    engine_version: str
    size_bytes: int
    """Of the model file."""
    inputs: str
    """What it was asked: `golden`, `sample` or `made up`."""
    load_ms: float
    latencies: Latencies
    peak_mib: float
    """Peak resident memory of its process, which holds the converter's libraries too."""
    model_mib: float
    """What of it loading the model and the first call added."""
    histogram: tuple[Bin, ...]
    measured_on: str
    """Where, and for what it counts."""
    checks: tuple[Check, ...]


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """Several, measured in turn."""

    timed: tuple[Timed, ...]
    host: Host
    threads: int
    seconds: float
    """Spent on each, warm-up included."""
    rounds: int

    @property
    def passed(self) -> bool:
        """Whether every budget that binds here is kept."""
        return all(check.passed for timed in self.timed for check in timed.checks if check.binding)


class Benched(msgspec.Struct, frozen=True):
    """The report, and every call's duration by subject, nanoseconds."""

    report: BenchReport
    times_ns: tuple[list[int], ...]


def bench(
    paths: Sequence[Path],
    profile: Profile | None = None,
    *,
    seconds: float = 3.0,
    threads: int = 1,
    sample: Path | None = None,
    machine_code: bool = False,
    progress: Progress | None = None,
) -> Benched:
    """Time bundles and model files.

    Each is loaded in a process of its own and warmed up. Then all are timed in short rounds, forwards and backwards
    in turn, so that a machine that grows slower or is disturbed is so to all of them.

    Args:
        paths: `.ewb`, `.onnx`, `.ort` or `.tflite`.
        profile: whose budget counts; None for each bundle's own.
        seconds: for each.
        threads: of one call.
        sample: inputs for model files; a bundle brings its own.
        machine_code: whether the bundles' origin is trusted, so that machine code in them may run: it runs as the user.
        progress: called with what is being done, and the share of the whole that is behind.

    Raises:
        ConverterError: an argument is out of bounds.
        ProofMissingError: a bundle holds machine code, and `machine_code` is not set.
        ModelFileError, SampleError, EngineError, MissingExtraError: see there.
        ProtocolError: a bundle is damaged.
    """
    _check(paths, seconds, threads)
    tell = progress or (lambda _text, _fraction: None)
    host = read_host()
    rounds = int(min(max(seconds / _ROUND_S, _MIN_ROUNDS), _MAX_ROUNDS))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgewise-bench-")))
        subjects = [
            prepare(path, folder / str(i), profile, sample=sample, threads=threads, machine_code=machine_code)
            for i, path in enumerate(paths)
        ]
        children: list[BenchProcess] = []
        for subject in subjects:
            tell(f"loading {subject.name}", 0.0)
            children.append(stack.enter_context(BenchProcess(subject.task, subject.name)))
        times: list[list[int]] = [[] for _ in children]
        peaks = [0.0] * len(children)
        for child in children:
            child.run(seconds * _WARM_UP)
        order = list(range(len(children)))
        for done in range(rounds):
            tell(f"round {done + 1} of {rounds}", done / rounds)
            for i in order if done % 2 == 0 else reversed(order):
                round_ = children[i].run(seconds * (1 - _WARM_UP) / rounds)
                times[i] += round_.times_ns
                peaks[i] = max(peaks[i], round_.peak_mib)
        loaded = [child.loaded for child in children]
    tell("done", 1.0)
    timed = tuple(
        Timed(
            name=subject.name,
            profile=subject.profile.id if subject.profile else "",
            format=subject.task.format,
            precision=subject.precision or about.precision,
            engine=about.engine,
            engine_version=about.version,
            size_bytes=subject.size_bytes,
            inputs=about.inputs,
            load_ms=round(about.load_ms, 3),
            latencies=(found := summarise(taken)),
            peak_mib=round(peak, 1),
            model_mib=round(about.model_mib, 1),
            histogram=histogram(taken),
            measured_on=where(subject.profile, host).text,
            checks=_checks(subject, found, host),
        )
        for subject, about, taken, peak in zip(subjects, loaded, times, peaks, strict=True)
    )
    return Benched(BenchReport(timed=timed, host=host, threads=threads, seconds=seconds, rounds=rounds), tuple(times))


def _checks(subject: Subject, found: Latencies, host: Host) -> tuple[Check, ...]:
    if subject.profile is None:
        return ()
    binding = where(subject.profile, host).binding
    checks = [at_most("model size", subject.size_bytes / _KIB, subject.profile.budget.model_size_kib, "KiB")]
    if subject.latency_budget_ms:
        checks.append(at_most("median latency", found.median_ms, subject.latency_budget_ms, "ms", binding=binding))
    return tuple(checks)


def _check(paths: Sequence[Path], seconds: float, threads: int) -> None:
    if not 1 <= len(paths) <= MAX_SUBJECTS:
        raise ConverterError(f"between 1 and {MAX_SUBJECTS} bundles or models can be timed; {len(paths)} were given")
    if not 0 < seconds <= MAX_SECONDS:
        raise ConverterError(f"the seconds must be above 0 and at most {MAX_SECONDS:g}; {seconds:g} was given")
    if not 1 <= threads <= MAX_THREADS:
        raise ConverterError(f"between 1 and {MAX_THREADS} threads are possible; {threads} was given")
