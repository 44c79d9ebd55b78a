"""Starts real processes, and always ends them; waits for conditions within bounds."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
STOP_S = 60.0
_given: set[int] = set()
_BIN = Path(sys.executable).parent


def program(name: str) -> str:
    """One of the workspace's commands, as installed beside this Python."""
    found = _BIN / name
    assert found.exists(), f"{name} is not installed: run scripts/setup"
    return str(found)


def free_port() -> int:
    """A port below the range from which the kernel takes those of clients (ip(7), `ip_local_port_range`)."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.choice([n for n in range(20_000, 32_000) if n not in _given])
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


def wait_for(what: str, look: Callable[[], T], timeout_s: float = 30.0, every_s: float = 0.05) -> T:
    """Look until the answer is truthy, and return it.

    Raises:
        AssertionError: it was not within `timeout_s`.
    """
    deadline, pause = time.monotonic() + timeout_s, threading.Event()
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s; the last look gave {found!r}")
        pause.wait(every_s)
    return found


class Process:
    """A command that may be started, killed and started again; its output is appended to one log."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._env = env
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def text(self) -> str:
        """What it has said since the first start."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def start(self, **env: str) -> None:
        assert self._running is None, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                self._command, env={**self._env, **env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def check(self) -> None:
        """Fail if it ended by itself."""
        if self._running is not None and self._running.poll() is not None:
            raise AssertionError(f"{self.name} ended with status {self._running.returncode}: {self.text[-3000:]}")

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nothing is told."""
        self.check()
        self._end(signal.SIGKILL)

    def stop(self) -> int | None:
        """SIGTERM; the exit status, or None where it did not run or had to be killed."""
        if self._running is None:
            return None
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int | None:
        process, self._running = self._running, None
        assert process is not None, f"{self.name} does not run"
        process.send_signal(number)
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None


class Mosquitto:
    """A real Mosquitto on a port of its own, which keeps nothing on the disk."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        assert found is not None, "mosquitto is not installed: apt install mosquitto"
        self.port = free_port()
        config = folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
            "max_packet_size 8388608\npersistence false\nlog_type error\nlog_type warning\n"
        )
        self.process = Process("mosquitto", [found, "-c", str(config)], dict(os.environ), folder / "mosquitto.log")

    def start(self) -> None:
        self.process.start()
        wait_for("mosquitto listens", self._listens, 10)

    def _listens(self) -> bool:
        self.process.check()
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except ConnectionRefusedError:
            return False
        return True
