"""Publishes the reported state on every change, and again on every new connection."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from edgewise_protocol.bounds import MAX_TEXT_CHARS
from edgewise_protocol.messages import Event, Reported, Streamed, encode

from edgewise_agent.errors import AgentError, SessionError
from edgewise_agent.install.state import InstallState, Slot
from edgewise_agent.reporting.report import build_report

log = logging.getLogger(__name__)


class EventSink(Protocol):
    """What the reporter needs of the outbox."""

    def put(self, leaf: Any, make: Callable[[str, int, float], Streamed]) -> None: ...


class Reporter:
    """Args:
    publish: publishes a retained `Reported`; raises `SessionError` when offline.
    outbox: takes events.
    simulated: labels everything that is reported.
    """

    def __init__(self, publish: Callable[[bytes], None], outbox: EventSink, simulated: bool) -> None:
        self._publish = publish
        self._outbox = outbox
        self._simulated = simulated
        self._lock = threading.Lock()
        self._latest: Reported | None = None

    def changed(self, state: InstallState, serving: dict[str, Slot]) -> None:
        """Report a new state, unless it is what was reported last."""
        report = build_report(state, serving, time.time(), self._simulated)
        with self._lock:
            last = self._latest
            if last is not None and _content(last) == _content(report):
                return
            self._latest = report
        self.republish()

    def republish(self) -> None:
        """Publish the latest report; without a connection it waits for the next."""
        with self._lock:
            report = self._latest
            if report is None:
                return
            try:
                self._publish(encode(report))
            except SessionError as error:
                log.debug("the report waits for a connection", extra={"reason": str(error)})

    def happened(self, kind: str, code: str, text: str, data: dict[str, Any]) -> None:
        """Put an event into the outbox."""

        def make(stream: str, seq: int, at: float) -> Event:
            return Event(
                stream=stream, seq=seq, at=at, kind=kind, code=code[:64], text=text[:MAX_TEXT_CHARS], data=data
            )

        try:
            self._outbox.put("event", make)
        except AgentError as error:
            log.error("an event could not be kept", extra={"code": code, "reason": str(error)})


def _content(report: Reported) -> tuple[object, ...]:
    return (report.assignment_version, report.deployment, report.models, report.error_code, report.error)
