"""The keeper's thread: judges the parts' progress, and tells the service manager.

It sends `WATCHDOG=1` only while every part makes progress. When one is stuck, it logs where
that part's thread stands and falls silent, so that the service manager restarts the agent.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

from edgewise_agent.watchdog import liveness
from edgewise_agent.watchdog.notify import Notifier
from edgewise_agent.watchdog.pulse import Pulse

log = logging.getLogger(__name__)

_MAX_TRACE_CHARS: Final = 4_000


class Keeper:
    """Args:
    pulse: progress of the parts.
    notifier: the service manager.
    watchdog_s: its watchdog time, seconds; 0 if it has none.
    status: one line on what the agent does.
    stalled: told of the stuck parts' names when they change.
    """

    def __init__(
        self,
        pulse: Pulse,
        notifier: Notifier,
        watchdog_s: float,
        status: Callable[[], str],
        stalled: Callable[[tuple[str, ...]], None],
    ) -> None:
        self._pulse = pulse
        self._notifier = notifier
        self._period = liveness.period(watchdog_s)
        self._watched = watchdog_s > 0
        self._status = status
        self._stalled = stalled
        self._said = ""
        self._stuck: tuple[str, ...] = ()
        self._stop = threading.Event()
        self._leaving = False
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def ready(self) -> None:
        """The agent serves: tell the service manager, and begin to judge."""
        self._notifier.ready()
        self._thread.start()

    def leave(self) -> None:
        """The agent stops in order: parts fall silent one by one, which is no stall."""
        self._leaving = True
        self._notifier.stopping()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            self.look(time.monotonic())
            if self._stop.wait(self._period):
                return

    def look(self, now: float) -> None:
        """Judge once, and tell."""
        stalls = () if self._leaving else liveness.judge(self._pulse.taken(), now)
        names = tuple(stall.name for stall in stalls)
        if names != self._stuck:
            self._stuck = names
            for stall in stalls:
                log.error(
                    "a part of the agent is stuck",
                    extra={"part": stall.name, "silent_s": round(stall.silent_s, 1), "where": _where(stall.name)},
                )
            self._stalled(names)
        if self._watched and not stalls:
            self._notifier.alive()
        text = f"stuck: {', '.join(names)}" if names else self._status()
        if text != self._said:
            self._said = text
            self._notifier.status(text)


def _where(name: str) -> str:
    """The stack of the thread of this name, for the log."""
    thread = next((thread for thread in threading.enumerate() if thread.name == name), None)
    frame = sys._current_frames().get(thread.ident or 0) if thread is not None else None
    if frame is None:
        return "its thread has ended"
    return "".join(traceback.format_stack(frame))[-_MAX_TRACE_CHARS:]
