"""A measured model's process: `python -m edgewise_converter.benching.child TASK`.

It answers one line of JSON for each line on its standard input: what loading cost, then, for `["run", SECONDS]`,
the durations of calls. A process a model keeps memory apart, and an engine that crashes takes only itself down.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from edgewise_profiles.schema import EngineName, Format, Precision
from edgewise_protocol.manifest import TensorSpec
from numpy.typing import NDArray
from safetensors.numpy import load_file

from edgewise_converter.engines.dtypes import NUMPY
from edgewise_converter.engines.named import FREE, NamedModel
from edgewise_converter.engines.opening import open_artifact, open_named
from edgewise_converter.errors import ConverterError
from edgewise_converter.importing.samples import integers_of, match, read_arrays
from edgewise_converter.passes.artifact import Artifact, Signature

MAX_CALLS: Final = 20_000
"""Of one round."""
Feeds = dict[str, NDArray[Any]]


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What to load, and what to ask it."""

    model: str
    """Path of the model file."""
    format: Format
    engine: EngineName | None = None
    threads: int = 1
    integers: tuple[str, ...] = ()
    precision: Precision = "float32"
    inputs: tuple[TensorSpec, ...] = ()
    """Of a bundle: what a compiled module does not say of itself."""
    outputs: tuple[TensorSpec, ...] = ()
    feeds: str = ""
    """Safetensors with the inputs of one call, by name."""
    sample: str = ""
    """Else a sample file, whose first request is asked; else numbers are made up."""


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """The first answer."""

    engine: str
    version: str
    precision: str
    load_ms: float
    model_mib: float
    """By how much loading and the first call raised resident memory."""
    inputs: str
    """What is asked: `golden`, `sample` or `made up`."""


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `run`."""

    times_ns: list[int]
    peak_mib: float


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The answer when something is refused."""

    code: str
    text: str


def load(task: Task) -> tuple[NamedModel, Feeds, Loaded]:
    """Open the model and answer once; raises `ConverterError`."""
    arrays = read_arrays(Path(task.sample)) if task.sample else {}
    data = Path(task.model).read_bytes()
    integers = frozenset(task.integers) | integers_of(arrays)
    before = _memory_mib("VmRSS")
    started = time.perf_counter()
    model = _open(data, task, integers)
    load_ms = (time.perf_counter() - started) * 1e3
    if task.feeds:
        kind, feeds = "golden", load_file(task.feeds)
    elif task.sample:
        kind, sample = "sample", match(arrays, model.inputs, model.outputs, model.batch)
        feeds = sample.inputs if model.batch is None else {n: a[:1] for n, a in sample.inputs.items()}
    else:
        kind, feeds = "made up", {spec.name: made_up(spec) for spec in model.inputs}
    feeds = {name: _rows(array, model.batch) for name, array in feeds.items()}
    model.call(feeds)
    loaded = Loaded(
        engine=model.engine,
        version=model.version,
        precision=model.precision,
        load_ms=load_ms,
        model_mib=max(0.0, _memory_mib("VmRSS") - before),
        inputs=kind,
    )
    return model, feeds, loaded


def _open(data: bytes, task: Task, integers: frozenset[str]) -> NamedModel:
    if task.inputs and task.outputs:
        made = Artifact(data, task.format, task.precision, Signature(task.inputs, task.outputs))
        return open_artifact(made, integers, task.threads)
    return open_named(data, task.format, integers, task.engine, task.threads)


def made_up(spec: TensorSpec) -> NDArray[Any]:
    """An input of one sample: standard normal numbers of a fixed seed, zeros for integers. Pure."""
    shape = [1 if size == FREE else size for size in spec.shape]
    dtype = NUMPY[spec.dtype]
    if dtype.kind == "f":
        return np.random.default_rng(0).standard_normal(shape).astype(dtype)
    return np.zeros(shape, dtype)


def run(model: NamedModel, feeds: Feeds, seconds: float) -> Round:
    """Call for some seconds, once at least."""
    times: list[int] = []
    ends = time.perf_counter_ns() + int(seconds * 1e9)
    while len(times) < MAX_CALLS:
        start = time.perf_counter_ns()
        model.call(feeds)
        end = time.perf_counter_ns()
        times.append(end - start)
        if end >= ends:
            break
    return Round(times_ns=times, peak_mib=_memory_mib("VmHWM"))


def _rows(array: NDArray[Any], batch: int | None) -> NDArray[Any]:
    """What the file takes at once."""
    if batch is None or batch == FREE or len(array) >= batch:
        return np.ascontiguousarray(array if batch in (None, FREE) else array[:batch])
    return np.ascontiguousarray(np.concatenate([array, np.repeat(array[-1:], batch - len(array), axis=0)]))


def _memory_mib(field: str) -> float:
    """A field of this process's memory in Linux's words, MiB; elsewhere the peak."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: list[str]) -> int:
    """Answer until the standard input ends; what engines print goes to the error stream."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def tell(answer: msgspec.Struct) -> None:
        data = memoryview(msgspec.json.encode(answer) + b"\n")
        while data:
            data = data[answers.write(data) :]

    try:
        model, feeds, loaded = load(msgspec.json.decode(arguments[0].encode(), type=Task))
        tell(loaded)
        for line in sys.stdin.buffer:
            tell(run(model, feeds, msgspec.json.decode(line, type=float)))
    except ConverterError as error:
        tell(Failure(code=error.code, text=str(error)))
    except (MemoryError, OSError) as error:
        tell(Failure(code="engine", text=str(error) or "there is not enough memory"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
