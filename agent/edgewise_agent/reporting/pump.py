"""The pump: carries the outbox's messages to the broker, and the server's acknowledgements back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from edgewise_protocol.messages import Ack

from edgewise_agent.backoff import Backoff
from edgewise_agent.errors import SessionError
from edgewise_agent.reporting.window import Window
from edgewise_agent.watchdog.liveness import IDLE_S
from edgewise_agent.watchdog.pulse import Beat, no_beat

log = logging.getLogger(__name__)

WINDOW: Final = 64
"""Messages that may wait for their acknowledgement."""
_BATCH: Final = 16
_PAUSES_S: Final = (1.0, 4.0)
"""Shortest and longest wait after a publication that the connection refused."""


class Item(Protocol):
    @property
    def seq(self) -> int: ...
    @property
    def leaf(self) -> str: ...
    @property
    def payload(self) -> bytes: ...


class Source(Protocol):
    """What the pump needs of the outbox."""

    @property
    def stream(self) -> str: ...
    def pending(self, after_seq: int, limit: int) -> Sequence[Item]: ...
    def acknowledge(self, stream: str, through: int) -> None: ...


class Pump:
    """Args:
    source: the outbox.
    publish: takes (leaf, payload); raises `SessionError` when offline.
    resend_s: after this long without an acknowledgement, what is on its way is sent again.
    beat: called at each turn of the thread.
    """

    def __init__(
        self, source: Source, publish: Callable[[str, bytes], None], resend_s: float, beat: Beat = no_beat
    ) -> None:
        self._source = source
        self._beat = beat
        self._pauses = Backoff(*_PAUSES_S)
        self._publish = publish
        self._window = Window(limit=WINDOW, resend_s=resend_s)
        self._stream = source.stream
        self._change = threading.Condition()
        self._online = False
        self._fresh = True
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="pump", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._change:
            self._stopping = True
            self._change.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def online(self) -> None:
        """A new connection: everything unacknowledged is sent on it."""
        with self._change:
            self._online, self._fresh = True, True
            self._window = self._window.connected()
            self._change.notify_all()

    def offline(self) -> None:
        with self._change:
            self._online = False

    def filled(self) -> None:
        """There is something new in the outbox."""
        with self._change:
            self._fresh = True
            self._change.notify_all()

    def acknowledged(self, ack: Ack) -> None:
        """The server has stored messages."""
        with self._change:
            if ack.stream != self._source.stream:
                return
            self._window = self._window.stored(ack.through, time.monotonic())
            through, self._fresh = self._window.acknowledged, True
            self._change.notify_all()
        self._source.acknowledge(ack.stream, through)

    def _run(self) -> None:
        while self._wait():
            with self._change:
                if self._source.stream != self._stream:
                    # The outbox began anew: its sequences have nothing to do with the old ones.
                    self._stream, self._window = self._source.stream, Window(WINDOW, self._window.resend_s)
                if self._window.resend_in(time.monotonic()) == 0.0:
                    self._window = self._window.connected()
                after, limit = self._window.sent, min(_BATCH, self._window.room())
                self._fresh = False
            items = self._source.pending(after, limit)
            try:
                for item in items:
                    self._publish(item.leaf, item.payload)
                    with self._change:
                        if self._window.sent <= item.seq:
                            self._window = self._window.published(item.seq, time.monotonic())
            except SessionError as error:
                log.debug("the outbox waits", extra={"reason": str(error)})
                with self._change:
                    self._fresh = True
                    self._change.wait_for(lambda: self._stopping, self._pauses.next())
            else:
                self._pauses.reset()
                with self._change:
                    self._fresh = self._fresh or len(items) == limit

    def _wait(self) -> bool:
        """Block until there may be something to send; False when the pump stops."""
        with self._change:
            while not self._stopping:
                self._beat()
                due = self._window.resend_in(time.monotonic()) if self._online else None
                if self._online and ((self._fresh and self._window.room() > 0) or due == 0.0):
                    return True
                self._change.wait(IDLE_S if due is None else min(due, IDLE_S))
            return False
