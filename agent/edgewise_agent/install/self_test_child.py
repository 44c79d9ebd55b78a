"""The self-test's process: `python -m edgewise_agent.install.self_test_child FOLDER LIMITS`.

It limits itself first, then loads the model, runs the golden inputs and measures, and
writes one JSON object on its standard output. A runtime that crashes takes this process
down, not the agent. What the numbers must be is for the parent to judge, except the golden
outputs, which need not leave this process.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec
from edgewise_protocol.latencies import Bin, Latencies, histogram, summarise

from edgewise_agent.config import GatewayConfig

MIB: Final = 1 << 20
_LATENCY_RUNS: Final = 21
_LATENCY_SECONDS: Final = 5.0
_FILE_BYTES: Final = 4 * MIB
_BENCH_CALLS: Final = 2_000_000


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    memory_mib: int
    cpu_s: int
    nice: int
    threads: int = 1
    bench_s: float = 0.0
    """Seconds to time calls for; 0 is a self-test, which times a few."""
    gateway: GatewayConfig | None = None
    """The board on which the model is tested, where it is not this machine."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the child found. `code` is empty when the golden outputs were met."""

    code: str = ""
    text: str = ""
    measured: dict[str, float] = {}
    latencies: Latencies | None = None
    """Of a bench: its calls, and their histogram."""
    histogram: tuple[Bin, ...] = ()


def limit(limits: Limits) -> None:
    """Give this process the limits, for good."""
    os.nice(limits.nice)
    for name, amount in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_DATA, limits.memory_mib * MIB),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
    ):
        hard = resource.getrlimit(name)[1]
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(name, (amount, amount))


def peak_mib() -> float:
    """Peak resident memory of this process image, MiB. `ru_maxrss` would include the parent's from before exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def examine(folder: Path, threads: int, bench_s: float = 0.0, gateway: GatewayConfig | None = None) -> Verdict:
    """Load, run, compare and measure the bundle in a folder; with `bench_s`, time calls for as long."""
    from edgewise_protocol.golden import compare
    from edgewise_protocol.manifest import MANIFEST_FILE, decode_manifest
    from safetensors.numpy import load_file

    from edgewise_agent.engines import open_engine

    manifest = decode_manifest((folder / MANIFEST_FILE).read_bytes())
    if manifest.golden is None:
        return Verdict(code="self-test", text="the bundle holds no golden samples")
    tensors: dict[str, Any] = load_file(str(folder / manifest.golden.file))
    inputs = {spec.name: tensors[f"input.{spec.name}"] for spec in manifest.inputs}
    expected = {spec.name: tensors[f"output.{spec.name}"] for spec in manifest.outputs}
    started = time.perf_counter()
    engine = open_engine(manifest.requires.engine, folder / manifest.model_file, manifest, threads, gateway, hold=True)
    load_ms = (time.perf_counter() - started) * 1000
    batch = max((spec.shape[0] for spec in manifest.inputs if spec.shape), default=-1)
    found = compare(manifest.golden, expected, _infer(engine, inputs, manifest.golden.samples, batch))
    single = {name: array[: max(batch, 1)] for name, array in inputs.items()}
    times: list[float] = []
    ends = time.perf_counter() + _LATENCY_SECONDS
    while len(times) < _LATENCY_RUNS and (not times or time.perf_counter() < ends):
        begun = time.perf_counter()
        engine.infer(single)
        times.append((time.perf_counter() - begun) * 1000)
    bench = _time_calls(lambda: engine.infer(single), bench_s) if bench_s else []
    engine.close()
    measured = {
        "load_ms": load_ms,
        "latency_ms": median(times),
        "peak_mib": peak_mib(),
        "max_abs_error": found.max_abs_error,
        "outliers": found.outliers,
        "top1": found.top1,
    }
    return Verdict(
        code="" if found.passed else "self-test-golden",
        text=found.reason,
        measured=measured,
        latencies=summarise(bench) if bench else None,
        histogram=histogram(bench) if bench else (),
    )


def _time_calls(call: Callable[[], object], seconds: float) -> list[int]:
    """Durations of calls for some seconds, nanoseconds; those of the first tenth warm up and do not count."""
    begun, times = time.perf_counter(), list[int]()
    while time.perf_counter() < begun + seconds / 10:
        call()
    ends = begun + seconds
    while not times or (time.perf_counter() < ends and len(times) < _BENCH_CALLS):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return times


def _infer(engine: Any, inputs: dict[str, Any], samples: int, batch: int) -> dict[str, Any]:
    """All samples at once, or group by group where the batch is fixed."""
    import numpy as np

    if batch in (-1, samples):
        found: dict[str, Any] = engine.infer(inputs)
        return found
    groups = [
        engine.infer({name: array[start : start + batch] for name, array in inputs.items()})
        for start in range(0, samples, batch)
    ]
    return {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}


def _lacks_memory(error: BaseException) -> bool:
    """Whether an error is for want of memory: Python's, the kernel's, or that of a library that cannot be mapped."""
    if isinstance(error, ImportError):  # glibc's dlopen says so and gives no number
        return "failed to map segment" in str(error) or "Cannot allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def main(arguments: list[str]) -> int:
    """Write the verdict to the first standard output; what runtimes print goes to the error stream."""
    answer = os.dup(1)
    os.dup2(2, 1)
    limits = msgspec.json.decode(arguments[1].encode(), type=Limits)
    limit(limits)
    try:
        verdict = examine(Path(arguments[0]), limits.threads, limits.bench_s, limits.gateway)
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises is the verdict, not this process's failure
        code = getattr(error, "code", "")
        verdict = Verdict(code=code if isinstance(code, str) and code else "self-test", text=str(error)[:1500])
        if _lacks_memory(error):
            verdict = Verdict(
                code="self-test-memory", text=f"the model needs more than {limits.memory_mib} MiB of memory"
            )
    with os.fdopen(answer, "wb") as out:
        out.write(msgspec.json.encode(verdict))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
