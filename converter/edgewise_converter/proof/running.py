"""Running a request where a place is chosen: in a child process of the host, or under an emulator in a sysroot.

The same program runs in both (`proof.runner`), so that what differs is the processor alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec
from edgewise_protocol.manifest import Manifest
from numpy.typing import NDArray

from edgewise_converter.engines.named import Tensors
from edgewise_converter.errors import EngineError, ProofError
from edgewise_converter.proof import process, runner, sysroot, tools
from edgewise_converter.proof.recipe import WHEELS
from edgewise_converter.proof.sysroot import Sysroot

EMULATED_S: Final = 900.0
"""Emulated inference is about a hundred times slower than native."""
NATIVE_S: Final = 300.0
_SLACK_S: Final = 60.0
"""Beyond which the kernel ends what this process, itself killed, could not."""
_MAX_ANSWER: Final = 256 << 20
_MODEL_TIMES: Final = 8
_BASE_BYTES: Final = 3 << 30
"""Of address space: engine, interpreter, and the emulator with what it translates."""
_GUEST_32_BYTES: Final = 4 << 30
"""What the emulator reserves for a 32-bit program, used or not."""
_NATIVE_BYTES: Final = 4 << 30
"""Of a native run's own data, and `_MODEL_TIMES` what it is given."""
_NOBODY: Final = 65534
_FILES: Final = 256
_TASKS: Final = 256
"""Processes and threads of a run; engines start one each, Python and the emulator a few."""
_PROC: Final = Path("/proc")


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What the runner says beside the outputs."""

    machine: str
    features: tuple[str, ...] = ()
    version: str = ""
    """Of the engine's distribution."""
    stage: str = ""
    """Where it failed: `import`, `load` or `run`; empty when it did not."""
    error: str = ""
    load_s: float = 0.0
    run_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine answered to golden inputs."""

    told: Told
    outputs: Tensors
    seconds: float
    """Of the whole run, with the start of Python. Under an emulator it says nothing of latency."""
    log: str


def request(
    manifest: Manifest, model: bytes, inputs: Mapping[str, NDArray[Any]], *, engine: str, paths: Sequence[str]
) -> bytes:
    """What the runner reads.

    Args:
        manifest: of the bundle.
        model: its model file.
        inputs: golden ones, (samples, ...) by name.
        engine: that runs it.
        paths: in front of Python's.
    """
    import numpy as np

    spec = {
        "engine": engine,
        "format": manifest.format,
        "inputs": msgspec.to_builtins(manifest.inputs),
        "outputs": msgspec.to_builtins(manifest.outputs),
        "paths": list(paths),
    }
    arrays = {"model": np.frombuffer(model, np.uint8)}
    return runner.pack(
        spec, arrays | {f"input.{s.name}": np.ascontiguousarray(inputs[s.name]) for s in manifest.inputs}
    )


def native_command() -> list[str]:
    """The runner in this Python."""
    return [sys.executable, "-I", "-B", "-c", script()]


def emulated_command(there: Sysroot, *, memory: int, cpu_s: float, tasks: int, root: bool) -> list[str]:
    """The runner in a sysroot: as nobody, without rights, network, other processes or the host's files.

    The emulator hands the guest's calls on to this kernel, so it is these that shut machine code in.

    Args:
        there: the sysroot.
        memory: address space that it may have, bytes. A limit of data would not bind: the emulator reserves first.
        cpu_s: processor time that it may take.
        tasks: processes and threads that its user may have.
        root: whether this user is root; else a user namespace stands in.
    """
    bounds = [
        *(tools.program("prlimit"), f"--as={memory}", f"--cpu={int(cpu_s)}", "--core=0"),
        *(f"--nofile={_FILES}", f"--fsize={_MAX_ANSWER}", f"--nproc={tasks}"),
    ]
    apart = [tools.program("unshare"), "--net", "--ipc", "--uts", "--mount", "--pid", "--fork", "--kill-child"]
    # Nobody in the namespace, not its root: root may leave a chroot again.
    alone = ["--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}", f"--root={there.root}", "--wd=/"]
    changed = [tools.program("chroot"), f"--userspec={_NOBODY}:{_NOBODY}", "--groups=", str(there.root)]
    return [
        *((*apart, *bounds, *changed) if root else (*bounds, *apart, *alone)),
        *(there.qemu, "-cpu", there.recipe.cpu, "-E", f"LD_LIBRARY_PATH={':'.join(there.recipe.libraries)}"),
        *(there.python, "-I", "-B", "-c", script()),
    ]


def run_native(manifest: Manifest, model: bytes, inputs: Mapping[str, NDArray[Any]], engine: str) -> Answer:
    """Answer golden inputs in a process of this host, within bounds of memory and time.

    It is not shut in: what the engine would do with machine code, it does as this user.

    Raises:
        EngineError: the engine refuses the model, or fails on it.
        ProofError: the process ended without an answer.
    """
    data = request(manifest, model, inputs, engine=engine, paths=[p for p in sys.path if p])
    bounds = (_NATIVE_BYTES + _MODEL_TIMES * len(data), int(NATIVE_S + _SLACK_S), _MAX_ANSWER)
    command = [*native_command(), *map(str, bounds)]
    # More threads of NumPy's would take memory by the number of processors.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    # Data that an ONNX file names beside itself are looked for there, and nowhere else.
    try:
        with tempfile.TemporaryDirectory(prefix="edgewise-proof-") as folder:
            return _run(command, data, NATIVE_S, environment, "this host", folder)
    except OSError as error:
        raise ProofError(f"the golden inputs could not be run on this host: {error.strerror}") from error


def run_emulated(manifest: Manifest, model: bytes, inputs: Mapping[str, NDArray[Any]], there: Sysroot) -> Answer:
    """Answer golden inputs on the emulated processor; raises as `run_native`, and `ProofToolsError`."""
    data = request(manifest, model, inputs, engine=manifest.requires.engine, paths=[f"/{WHEELS}"])
    memory = _BASE_BYTES + _MODEL_TIMES * len(model) + (_GUEST_32_BYTES if there.recipe.machine == "armv7l" else 0)
    root = os.geteuid() == 0
    tasks = _TASKS + tasks_of(_NOBODY if root else os.geteuid())
    command = emulated_command(there, memory=memory, cpu_s=EMULATED_S + _SLACK_S, tasks=tasks, root=root)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    with sysroot.used(there):
        return _run(command, data, EMULATED_S, environment, f"the emulated {there.recipe.cpu}")


def tasks_of(user: int) -> int:
    """Processes and threads that a user has now: the kernel counts them all against a limit."""
    found = 0
    for place in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another's
            if place.stat().st_uid == user:
                found += sum(1 for _ in (place / "task").iterdir())
    return found


@lru_cache(maxsize=1)
def script() -> str:
    """The runner's text."""
    return Path(runner.__file__).read_text(encoding="utf-8")


def _run(
    command: list[str], data: bytes, limit_s: float, environment: Mapping[str, str], where: str, folder: str = "/"
) -> Answer:
    started = time.perf_counter()
    try:
        done = process.run(
            command, data=data, limit_s=limit_s, max_output=_MAX_ANSWER, environment=environment, folder=folder
        )
    except OSError as error:
        raise ProofError(f"the golden inputs could not be run on {where}: {error.strerror}") from error
    seconds = time.perf_counter() - started
    if done.timed_out:
        raise ProofError(f"the golden inputs took more than {limit_s:.0f} s on {where}; the run was ended")
    try:
        header, outputs = runner.unpack(done.output)
        told = msgspec.convert(header, Told)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, msgspec.ValidationError) as error:
        how = f"was killed by signal {-done.status}" if done.status < 0 else f"ended with status {done.status}"
        said = " ".join(done.log.split())[-600:] or "it printed nothing"
        raise ProofError(f"the golden inputs were not answered on {where}: the run {how}: {said}") from error
    if told.error:
        raise EngineError(f"on {where} the engine fails to {told.stage} the model: {told.error}")
    return Answer(told, outputs, seconds, done.log)
