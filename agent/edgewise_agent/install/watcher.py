"""Watches models on probation and the time that assignments give.

In a thread of its own, since work may block the installer's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgewise_agent.config import ProbationConfig
from edgewise_agent.errors import AgentError
from edgewise_agent.install.activator import Health
from edgewise_agent.install.events import Confirmed, Event, Expired, Fault
from edgewise_agent.install.probation import Evidence, judge
from edgewise_agent.install.state import Slot
from edgewise_agent.watchdog.pulse import Beat, no_beat

_TICK_S = 0.2


@dataclass
class _Probation:
    slot: Slot
    began: float
    reachable: bool = False


class Watcher:
    """Posts `Confirmed`, `Fault` and `Expired`, each once.

    Args:
        health: of a model's active version.
        reachable: whether the device is online.
        post: takes (model, event); thread-safe.
        beat: called at each turn of the thread.
    """

    def __init__(
        self,
        config: ProbationConfig,
        health: Callable[[str], Health],
        reachable: Callable[[], bool],
        post: Callable[[str, Event], None],
        beat: Beat = no_beat,
    ) -> None:
        self._config = config
        self._beat = beat
        self._health = health
        self._reachable = reachable
        self._post = post
        self._lock = threading.Lock()
        self._probations: dict[str, _Probation] = {}
        self._deadlines: dict[str, tuple[str, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probation", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def expect(self, model: str, sha256: str, left_s: float) -> None:
        """The target must be confirmed within `left_s` seconds from now."""
        with self._lock:
            self._deadlines[model] = (sha256, time.monotonic() + left_s)

    def watch(self, model: str, slot: Slot) -> None:
        """The slot serves on probation from now."""
        with self._lock:
            self._probations[model] = _Probation(slot, time.monotonic())

    def forget(self, model: str) -> None:
        with self._lock:
            self._probations.pop(model, None)
            self._deadlines.pop(model, None)

    def _run(self) -> None:
        while not self._stop.wait(_TICK_S):
            self._beat()
            self.tick(time.monotonic())

    def tick(self, now: float) -> None:
        """Judge everything once."""
        with self._lock:
            probations, deadlines = dict(self._probations), dict(self._deadlines)
        for model, probation in probations.items():
            sha256, deadline = deadlines.get(model, (probation.slot.sha256, float("inf")))
            left = deadline - now if sha256 == probation.slot.sha256 else float("inf")
            event = self._judge(model, probation, now, left)
            if event is not None:
                self._done(model, event)
        for model, (sha256, deadline) in deadlines.items():
            if model not in probations and now >= deadline:
                self._done(model, Expired(at=time.time(), sha256=sha256))

    def _judge(self, model: str, probation: _Probation, now: float, left_s: float) -> Event | None:
        sha256, at = probation.slot.sha256, time.time()
        probation.reachable = probation.reachable or self._reachable()
        try:
            health = self._health(model)
        except AgentError as error:
            return Fault(at=at, sha256=sha256, code="engine-fault", text=str(error)[:1500])
        evidence = Evidence(
            serving=health.version == probation.slot.version,
            inferences_ok=health.inferences_ok,
            errors=health.errors,
            elapsed_s=now - probation.began,
            left_s=left_s,
            reachable=probation.reachable,
        )
        match judge(evidence, self._config):
            case "confirm":
                return Confirmed(at=at, sha256=sha256)
            case "expired":
                return Expired(at=at, sha256=sha256)
            case "fault":
                text = f"the engine failed in service: {health.last_error or 'another version serves'}"
                return Fault(at=at, sha256=sha256, code="engine-fault", text=text[:1500])
            case _:
                return None

    def _done(self, model: str, event: Event) -> None:
        self.forget(model)
        self._post(model, event)
