"""A bound on how long an engine may take for an answer, at less than a microsecond a call.

A call notes when it has to be done, and one thread of the process looks a few times a second
whether any is late. Nothing is started, waited for or locked on the way of a call, so that what is
timed is the engine.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

ANSWER_S: Final = 120.0
"""For an answer: a file's loops may have no end, and nothing else in onnxruntime bounds them."""
_PERIOD_S: Final = 0.25


class TimeLimit:
    """Of one model's calls to onnxruntime, one at a time.

    Args:
        make: gives `RunOptions`, whose `terminate` ends the calls that they were given to.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self.options = make, make()
        self.passed = False
        """Whether the call that was begun last took too long, and was ended."""
        self._until, self._watched = math.inf, False

    def begin(self, seconds: float) -> None:
        """A call begins that is to get `options`."""
        if self.passed:
            self.options, self.passed = self._make(), False
        if not self._watched:
            _WATCH.add(self)
            self._watched = True
        self._until = time.monotonic() + seconds

    def end(self) -> None:
        """It is over."""
        self._until = math.inf

    def look(self, now: float) -> None:
        """End the call if it is late; of the watching thread."""
        if now > self._until:
            self.passed, self.options.terminate = True, True


class _Watch:
    """The thread, which is there as long as there are limits that are used."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: weakref.WeakSet[TimeLimit] = weakref.WeakSet()
        self._thread: threading.Thread | None = None

    def add(self, limit: TimeLimit) -> None:
        with self._lock:
            self._limits.add(limit)
            if self._thread is None or not self._thread.is_alive():  # a fork leaves it behind
                self._thread = threading.Thread(target=self._run, name="edgewise-time-limit", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(_PERIOD_S)
            with self._lock:
                limits = list(self._limits)
                if not limits:
                    self._thread = None
                    return
            now = time.monotonic()
            while limits:  # no name here keeps a limit while the thread sleeps
                limits.pop().look(now)


_WATCH: Final = _Watch()
