"""Starts the demo's processes and always ends them: by their own ids, in reverse order, within a bound.

Each gets a session of its own, so that a Ctrl-C reaches the driver alone, which then ends
them in order, and so that `--keep` can leave them running.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from demo.narrator import DemoError

PIDS = "processes.json"
_STOP_S = 8.0


def wait_until(done: Callable[[], bool], timeout_s: float, what: str, every_s: float = 0.1) -> None:
    """Wait for a condition.

    Raises:
        DemoError: it was not met in time.
    """
    end = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end:
            raise DemoError(f"{what}: not within {timeout_s:g} s")
        time.sleep(every_s)


@dataclass
class Processes:
    """The processes of one demo; their logs lie in `logs`."""

    folder: Path
    logs: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: list[str], env: dict[str, str]) -> None:
        """Start a process whose output goes to `logs/NAME.log`."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        rows = {n: p.pid for n, p in self.running.items()}
        (self.folder / PIDS).write_text(json.dumps(rows))

    def check(self) -> None:
        """Raise `DemoError` if a process has ended."""
        for name, process in self.running.items():
            if process.poll() is not None:
                raise DemoError(f"the process {name} ended with status {process.returncode}: see its log")

    def wait_for(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait for a condition while all processes live."""

        def look() -> bool:
            self.check()
            return done()

        wait_until(look, timeout_s, what)

    def stop(self) -> None:
        """End all, the newest first."""
        for process in reversed(self.running.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        end = time.monotonic() + _STOP_S
        for process in reversed(self.running.values()):
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()
        (self.folder / PIDS).unlink(missing_ok=True)


def stop_kept(folder: Path) -> int:
    """End the processes that a `--keep` left in `folder`; returns how many.

    A process id may be another's by now: only one whose command line names the folder is ended.
    """
    path = folder / PIDS
    if not path.exists():
        return 0
    ended = []
    for pid in reversed(json.loads(path.read_text()).values()):
        if _is_ours(pid, folder):
            os.kill(pid, signal.SIGTERM)
            ended.append(pid)
    end = time.monotonic() + _STOP_S
    for pid in ended:
        while _is_ours(pid, folder):
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.1)
    path.unlink()
    return len(ended)


def _is_ours(pid: int, folder: Path) -> bool:
    try:
        return os.fsencode(str(folder)) in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
