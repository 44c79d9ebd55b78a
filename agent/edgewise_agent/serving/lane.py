"""One model version's inference thread and its bounded queue.

A lane is retired, not stopped: what was accepted is answered, then the engine is closed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any, NamedTuple

from numpy.typing import NDArray

from edgewise_agent.engines.base import Engine, Tensors
from edgewise_agent.engines.errors import EngineError, InferenceError, InputError
from edgewise_agent.serving.errors import BusyError, RetiredError
from edgewise_agent.serving.latency import LatencyHistogram

log = logging.getLogger(__name__)

Inputs = Mapping[str, NDArray[Any]]
Outcome = Tensors | EngineError
Done = Callable[[Outcome], None]
"""Called on the inference thread; must not block."""
Watcher = Callable[[Inputs, Outcome, float], None]
"""Inputs, what came of them, and the engine's milliseconds; on the inference thread, must not block."""


class _Job(NamedTuple):
    inputs: Inputs
    done: Done


class Stats:
    """Counters of one version since it became active; written by its lane's thread only.

    A request that the model cannot be blamed for (`InputError`) is in `refused`, not `errors`.
    """

    __slots__ = ("errors", "last_error", "latency", "ok", "refused", "since")

    def __init__(self) -> None:
        self.ok = 0
        self.errors = 0
        self.refused = 0
        self.last_error = ""
        self.latency = LatencyHistogram()
        self.since = time.time()


class Lane:
    """Answers one request after the other.

    Args:
        name: of the thread.
        engine: owned by the lane from now on.
        capacity: requests that may wait or be in work.
        watch: told of every answer.
    """

    def __init__(self, name: str, engine: Engine, capacity: int, watch: Watcher) -> None:
        self.stats = Stats()
        self._engine = engine
        self._capacity = capacity
        self._watch = watch
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._accepted = 0
        self._retired = False
        self._thread = threading.Thread(target=self._run, name=name[:60], daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests accepted and not yet answered."""
        return self._accepted

    def submit(self, inputs: Inputs, done: Done) -> None:
        """Queue a request; `done` gets its outputs or its error.

        Raises:
            RetiredError: another version has taken over.
            BusyError: `capacity` requests are waiting already.
        """
        with self._lock:
            if self._retired:
                raise RetiredError("this version has been replaced")
            if self._accepted >= self._capacity:
                raise BusyError(f"the model is busy: {self._accepted} requests wait for it already; try again")
            self._accepted += 1
            self._jobs.put(_Job(inputs, done))

    def retire(self) -> None:
        """Accept no more; answer what was accepted, then close the engine. Returns at once."""
        with self._lock:
            if not self._retired:
                self._retired = True
                self._jobs.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for a retired lane to end; whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._answer(job)
            # Neither the arrays nor the request's body may outlive the answer.
            del job
        self._engine.close()

    def _answer(self, job: _Job) -> None:
        begin = time.perf_counter()
        outcome = self._infer(job.inputs)
        elapsed_ms = (time.perf_counter() - begin) * 1000
        self._count(outcome, elapsed_ms)
        with self._lock:
            self._accepted -= 1
        job.done(outcome)
        self._watch(job.inputs, outcome, elapsed_ms)

    def _infer(self, inputs: Inputs) -> Outcome:
        try:
            return self._engine.infer(inputs)
        except EngineError as error:
            return error
        except Exception as error:
            log.exception("unforeseen error of an engine")
            return InferenceError(f"the engine failed unexpectedly: {type(error).__name__}: {str(error)[:200]}")

    def _count(self, outcome: Outcome, elapsed_ms: float) -> None:
        stats = self.stats
        if isinstance(outcome, InputError):
            stats.refused += 1
        elif isinstance(outcome, EngineError):
            stats.errors += 1
            stats.last_error = str(outcome)[:400]
        else:
            stats.ok += 1
            stats.latency.add(elapsed_ms)
