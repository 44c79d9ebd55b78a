"""Reading retained messages by explicit topics.

An absent retained message gives no answer, so each request names a sentinel last, which is
always retained: when it comes, what has not come is absent. The standard does not promise
that order, so silence is bounded too. One request at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from edgewise_protocol import topics
from edgewise_protocol.bounds import MAX_CHUNKS_PER_REQUEST

from edgewise_agent.errors import FetchTimeoutError, SessionError

_LOOK_S: Final = 0.25
"""How often it is looked whether a wait is still worth it."""


class Link(Protocol):
    """What a reader needs of a session."""

    @property
    def online(self) -> bool: ...
    @property
    def on_own_thread(self) -> bool: ...
    def subscribe(self, filters: Sequence[str]) -> int: ...
    def unsubscribe(self, filters: Sequence[str]) -> None: ...
    def reconnect(self, reason: str) -> None: ...


class RetainedReader:
    """Turns the session's stream of messages into answers.

    The session's owner routes messages to `deliver`, SUBACKs to `subscribed` and losses to `lost`.

    Args:
        link: the session.
        silence_s: longest wait for the next message of an answer, seconds.
    """

    def __init__(self, link: Link, silence_s: float) -> None:
        self._link = link
        self._silence_s = silence_s
        self._one = threading.Lock()
        self._change = threading.Condition()
        self._wanted: frozenset[str] = frozenset()
        self._found: dict[str, bytes] = {}
        self._mid = -1
        self._acknowledged: set[int] = set()
        self._complete = False
        self._broken = False
        self._heard = 0

    def read(
        self,
        names: Sequence[str],
        *,
        ask: Callable[[list[str]], None] | None = None,
        wait_s: float = 0.0,
        give_up: Callable[[], bool] = lambda: False,
    ) -> dict[str, bytes]:
        """Payloads of retained topics; absent ones are not in the answer.

        Args:
            names: 1 to `MAX_CHUNKS_PER_REQUEST` topics.
            ask: called once with the topics that are absent; then up to `wait_s` seconds are
                waited for somebody to publish them.
            give_up: looked at while waiting; true ends the wait for publications.

        Raises:
            SessionError: the connection is not there, or broke.
            FetchTimeoutError: the broker fell silent.
        """
        if self._link.on_own_thread:
            raise SessionError("retained messages cannot be awaited on the session's own thread")
        if not 1 <= len(names) <= MAX_CHUNKS_PER_REQUEST:
            raise SessionError(f"{len(names)} topics were asked for; 1 to {MAX_CHUNKS_PER_REQUEST} may be")
        asked = [*names, topics.SENTINEL]
        with self._one:
            with self._change:
                self._wanted = frozenset(names)
                self._found, self._acknowledged = {}, set()
                self._complete, self._broken = False, False
                # Under the lock, so that no part of the answer is looked at before its id is known.
                self._mid = self._link.subscribe(asked)
            try:
                self._await_answer()
                if ask is not None and len(self._found) < len(self._wanted):
                    self._await_publication(ask, wait_s, give_up)
                with self._change:
                    return dict(self._found)
            finally:
                with self._change:
                    self._wanted = frozenset()
                self._link.unsubscribe(asked)

    def _await_answer(self) -> None:
        with self._change:
            heard, quiet_until = self._heard, time.monotonic() + self._silence_s
            # Chatter is not silence, but it must not hold up the caller either: it may be the installer.
            latest = time.monotonic() + self._silence_s * (len(self._wanted) + 1)
            while not (self._complete or len(self._found) == len(self._wanted)):
                if self._broken or not self._link.online:
                    raise SessionError("the connection broke while retained messages were awaited")
                self._change.wait(max(0.0, quiet_until - time.monotonic()))
                if heard != self._heard:
                    heard, quiet_until = self._heard, min(latest, time.monotonic() + self._silence_s)
                elif time.monotonic() >= quiet_until:
                    # A late sentinel of this request would be taken for the next one's: start afresh.
                    self._link.reconnect("no answer to a request for retained messages")
                    raise FetchTimeoutError(f"the broker did not answer within {self._silence_s:g} s a message")

    def _await_publication(self, ask: Callable[[list[str]], None], wait_s: float, give_up: Callable[[], bool]) -> None:
        with self._change:
            absent = sorted(self._wanted - self._found.keys())
        ask(absent)
        deadline = time.monotonic() + wait_s
        with self._change:
            while len(self._found) < len(self._wanted) and not self._broken:
                left = deadline - time.monotonic()
                if left <= 0 or give_up():
                    return
                self._change.wait(min(left, _LOOK_S))

    # -- fed by the session's thread -------------------------------------------------------

    def deliver(self, topic: str, payload: bytes) -> bool:
        """Take a message if it belongs to the request in progress."""
        with self._change:
            self._heard += 1
            if topic == topics.SENTINEL:
                # The sentinel closes the request only after its SUBACK: an earlier one is a former request's.
                if self._mid in self._acknowledged:
                    self._complete = True
            elif topic not in self._wanted:
                return False
            elif payload:
                self._found[topic] = payload
            self._change.notify_all()
            return True

    def subscribed(self, mid: int) -> None:
        with self._change:
            if len(self._acknowledged) < MAX_CHUNKS_PER_REQUEST:
                self._acknowledged.add(mid)
            self._heard += 1
            self._change.notify_all()

    def lost(self) -> None:
        with self._change:
            self._broken = True
            self._change.notify_all()
