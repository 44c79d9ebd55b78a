"""Fixtures of the fault injection: the compiled shim, workers that fork agents under it, and modules of other tests."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
WORKERS = 2
_MEMORY_BYTES = 512 << 20


def _load(name: str, path: Path) -> Any:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def order() -> Any:
    """The module `order`."""
    return _load("faults_order", HERE / "order.py")


@pytest.fixture(scope="session")
def simulator() -> Any:
    """The agent's simulated fleet."""
    return _load("agent_fleet_simulator", HERE.parent / "agent" / "fleet_simulator.py")


@pytest.fixture(scope="session")
def agent_tools() -> Any:
    """The module with the agent's own fixtures: a broker, an enrolment, settings."""
    return _load("agent_conftest", HERE.parent / "agent" / "conftest.py")


@pytest.fixture(scope="session")
def enrol(agent_tools: Any, simulator: Any) -> Callable[[Path, bytes, int], None]:
    """Writes what an enrolment leaves: (state folder, TUF root, broker's port)."""
    module = _load("faults_enrolment", HERE / "enrolment.py")
    return lambda state, root, port: module.enrol(state, simulator, root, port)


class Worker:
    """One process that forks agents; see `zygote.py`."""

    def __init__(self, folder: Path, shim: Path) -> None:
        folder.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py"), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"},
        )

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the worker ended with {self.process.wait()}"
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.hear()


def _kinds(log: str) -> list[str]:
    return [line.split("\t")[1] for line in log.splitlines()]


class Faults:
    """The workers, and what they found.

    Attributes:
        state: the state folder that the log speaks of.
        log: every durable operation of the run without a fault, in order.
    """

    def __init__(self, folder: Path, shim: Path) -> None:
        self._workers = [Worker(folder / f"worker-{n}", shim) for n in range(WORKERS)]
        for worker in self._workers:
            assert worker.hear()["ok"]
        self._folder = folder
        self.state, self.log = self._count(self._workers[0])
        self.kinds = _kinds(self.log)

    def _count(self, worker: Worker) -> tuple[str, str]:
        path = self._folder / "log"
        answer = worker.ask(mode="count", log=str(path))
        assert answer["ok"], answer["why"]
        return answer["state"], path.read_text()

    def counts(self) -> dict[str, int]:
        """Durable operations by kind."""
        return dict(sorted(Counter(self.kinds).items()))

    def cases(self, modes: tuple[str, ...]) -> list[tuple[str, int]]:
        """Every (mode, point); only writes can be torn."""
        points = range(1, len(self.kinds) + 1)
        return [(m, n) for m in modes for n in points if m != "torn" or self.kinds[n - 1] == "write"]

    def run(self, cases: list[tuple[str, int]], progress: Callable[[str], None]) -> list[str]:
        """Let each fail on one of the workers; returns what went wrong."""
        waiting: SimpleQueue[tuple[str, int]] = SimpleQueue()
        for case in cases:
            waiting.put(case)
        wrong: list[str] = []
        done = 0

        def work(worker: Worker) -> None:
            nonlocal done
            while True:
                try:
                    mode, point = waiting.get_nowait()
                except Empty:
                    return
                answer = worker.ask(mode=mode, point=point)
                done += 1
                if not answer["ok"]:
                    line = self.log.splitlines()[point - 1]
                    wrong.append(f"{mode} at {line}: {answer['why']}")
                    progress(f"wrong: {mode} at {line}")
                if done % 100 == 0:
                    progress(f"{done} of {len(cases)} points, {len(wrong)} wrong")

        threads = [threading.Thread(target=work, args=(worker,)) for worker in self._workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if done != len(cases):
            wrong.append(f"only {done} of {len(cases)} points were tried")
        for worker in self._workers:
            # Else the numbers did not mean the same operations throughout.
            assert _kinds(self._count(worker)[1]) == self.kinds
        return wrong

    def close(self) -> None:
        for worker in self._workers:
            assert worker.process.stdin is not None and worker.process.stdout is not None
            worker.process.stdin.close()
            worker.process.wait(10)
            worker.process.stdout.close()


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """Workers with the shim, and the operations of a run without a fault."""
    tools = _load("faults_shim", HERE / "shim.py")
    shim = tools.build(tmp_path_factory.mktemp("shim"))
    memory = Path("/dev/shm")
    # Nothing here cuts the power, so a disk would only make thousands of renames slow.
    place = memory if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _MEMORY_BYTES else None
    with tempfile.TemporaryDirectory(prefix="edgewise-faults-", dir=place) as folder:
        found = Faults(Path(folder), shim)
        yield found
        found.close()


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Prints a line past pytest's capture: a run of many minutes must show that it goes on."""
    plugins = request.config.pluginmanager
    capture, reporter = plugins.getplugin("capturemanager"), plugins.getplugin("terminalreporter")
    lock = threading.Lock()

    def say(text: str) -> None:
        with lock, capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(f"faults: {text}", flush=True)

    return say
