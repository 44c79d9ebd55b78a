"""What must happen without being asked for: a periodic look at the fleet's metadata, and the runtime file.

The runtime file tells `edgewise-agent status` what the running agent knows of itself.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgewise_agent.durable import write_atomic
from edgewise_agent.errors import StateError, StorageError

log = logging.getLogger(__name__)

RUNTIME_FILE: Final = "runtime.json"
_MAX_BYTES: Final = 64 * 1024


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """`runtime.json`."""

    pid: int
    serving_url: str
    started: float
    online: bool = False
    running: bool = True
    simulated: bool = False
    stalled: tuple[str, ...] = ()
    """Parts of the agent that make no progress."""


def read_runtime(state: Path) -> Runtime | None:
    """The runtime file, or None if the agent never ran; raises `StateError`."""
    try:
        data = (state / RUNTIME_FILE).read_bytes()[:_MAX_BYTES]
        return msgspec.json.decode(data, type=Runtime)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StateError(f"{RUNTIME_FILE} is unreadable: {error}") from error


class Maintenance:
    """Args:
    state: the state folder.
    serving_url: where this agent serves.
    simulated: whether it stands in for a board.
    refresh_s: mean time between looks.
    look: makes the installer look at the last assignment again.
    """

    def __init__(
        self, state: Path, serving_url: str, simulated: bool, refresh_s: float, look: Callable[[], None]
    ) -> None:
        self._path = state / RUNTIME_FILE
        self._runtime = Runtime(pid=os.getpid(), serving_url=serving_url, started=time.time(), simulated=simulated)
        self._refresh_s = refresh_s
        self._look = look
        self._change = threading.Condition()
        self._dirty = True
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def online(self, online: bool) -> None:
        """The connection came or went. Does not block."""
        with self._change:
            self._runtime = msgspec.structs.replace(self._runtime, online=online)
            self._dirty = True
            self._change.notify_all()

    def stalled(self, names: tuple[str, ...]) -> None:
        """These parts are stuck. Does not block."""
        with self._change:
            self._runtime = msgspec.structs.replace(self._runtime, stalled=names)
            self._dirty = True
            self._change.notify_all()

    def stop(self) -> None:
        with self._change:
            self._stopping = True
            self._change.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._write(msgspec.structs.replace(self._runtime, online=False, running=False))

    def _run(self) -> None:
        look_at = time.monotonic() + self._next()
        while True:
            with self._change:
                while not (self._stopping or self._dirty) and time.monotonic() < look_at:
                    self._change.wait(look_at - time.monotonic())
                if self._stopping:
                    return
                dirty, self._dirty = self._dirty, False
                runtime = self._runtime
            if dirty:
                self._write(runtime)
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + self._next()
                self._look()

    def _next(self) -> float:
        # A fleet that was switched on together must not ask together for ever.
        return self._refresh_s * random.uniform(0.8, 1.2)  # noqa: S311

    def _write(self, runtime: Runtime) -> None:
        try:
            write_atomic(self._path, msgspec.json.encode(runtime))
        except StorageError as error:
            log.warning("the runtime file cannot be written", extra={"reason": str(error)})
