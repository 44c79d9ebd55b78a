"""Keeps the identity: a thread that carries out what the renewal's table says, and what clones are met with.

It owns everything that changes the identity while the agent runs. Other parts only tell it what they
saw: the session refusals and takeovers, the trust room what the offline keys say of the fleet's CA.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, Protocol

from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.renewal import FleetCaPins

from edgewise_agent.errors import AgentError, ServerRefusedError, code_of
from edgewise_agent.identity import clones, renewal
from edgewise_agent.identity.identity import Identity
from edgewise_agent.identity.renew import install_renewal, request_renewal
from edgewise_agent.identity.standing import Standing, read_standing, write_standing
from edgewise_agent.session.endings import Ending
from edgewise_agent.watchdog.liveness import IDLE_S
from edgewise_agent.watchdog.pulse import Beat, no_beat

log = logging.getLogger(__name__)

_STOP_S: Final = 60.0
_MAX_SEEN: Final = 1_000
RENEWED_CODE: Final = "certificate-renewed"
Seen = Literal["refused", "unreachable", "online", "taken-over", "cloned", "stop"]


class Link(Protocol):
    """What the keeper needs of the session."""

    def use(self, identity: Identity) -> None:
        """Speak with this identity from the next connection on, and begin that connection."""

    def slow_down(self, slow: bool) -> None:
        """Try the broker only after the longest wait, or as often as usual again."""


@dataclass(frozen=True)
class Timing:
    """Seconds between two looks, and the tables' policies."""

    look: float = 60.0
    renewal: renewal.Policy = field(default_factory=renewal.Policy)
    clones: clones.Policy = field(default_factory=clones.Policy)


class IdentityKeeper:
    """Start and stop once each; the other methods never block, and may be called from any thread.

    Args:
        state: the state folder.
        identity: as loaded.
        link: the session.
        pins: what the verified metadata say of the fleet's CA; called on the keeper's thread.
        report: tells the fleet: kind, code, text.
        timing: how often.
        beat: called at each turn.
    """

    def __init__(
        self,
        state: Path,
        identity: Identity,
        link: Link,
        pins: Callable[[], FleetCaPins],
        report: Callable[[str, str, str], None],
        timing: Timing | None = None,
        beat: Beat = no_beat,
    ) -> None:
        self._folder, self._identity, self._link = state, identity, link
        self._pins, self._report, self._beat = pins, report, beat
        self._timing = timing or Timing()
        self._seen: queue.Queue[Seen] = queue.Queue(_MAX_SEEN)
        self._standing = read_standing(state)
        self._state = renewal.begin(self._standing.code, self._timing.renewal, time.monotonic())
        self._takeovers = clones.Takeovers()
        self._thread = threading.Thread(target=self._run, name="identity", daemon=True)

    @property
    def identity(self) -> Identity:
        """The identity that holds now."""
        return self._identity

    @property
    def standing(self) -> Standing:
        """How it stands."""
        return self._standing

    def start(self) -> None:
        if self._state.phase == "ended":
            self._link.slow_down(True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a question that is under way is waited for."""
        self._tell("stop")
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    # -- what others saw -------------------------------------------------------------------

    def ended(self, ending: Ending) -> None:
        """A connection ended; see `edgewise_agent.session.endings`."""
        if ending != "lost":
            self._tell(ending)

    def online(self) -> None:
        self._tell("online")

    def cloned(self) -> None:
        """The server has seen two machines take turns with this identity."""
        self._tell("cloned")

    def _tell(self, seen: Seen) -> None:
        try:
            self._seen.put_nowait(seen)
        except queue.Full:
            log.warning("too much befalls the identity at once", extra={"seen": seen})

    # -- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        wait = 0.0
        while True:
            self._beat()
            seen = self._next(wait)
            # a fleet that was switched on together must not look together
            wait = self._timing.look * random.uniform(0.8, 1.2)  # noqa: S311
            if seen == "stop":
                return
            try:
                if seen is not None:
                    self._take(seen)
                self._step(self._look())
                self._pass_takeovers()
            except Exception:
                # the identity must be kept whatever befalls: without this thread the device would expire
                log.exception("the identity could not be looked after; it is tried again")

    def _next(self, wait: float) -> Seen | None:
        until = time.monotonic() + wait
        while True:
            left = until - time.monotonic()
            try:
                return self._seen.get(timeout=max(0.0, min(left, IDLE_S)))
            except queue.Empty:
                self._beat()
                if left <= IDLE_S:
                    return None

    def _take(self, seen: Seen) -> None:
        now = time.monotonic()
        match seen:
            case "online":
                self._step(renewal.Online())
            case "refused" | "unreachable":
                self._step(renewal.Troubled(now, refused=seen == "refused"))
            case "taken-over":
                self._suspect(clones.taken_over(self._takeovers, now, self._timing.clones))
            case "cloned":
                self._suspect(clones.told(now))

    def _suspect(self, found: clones.Takeovers) -> None:
        if found.cloned and not self._takeovers.cloned:
            self._stand(clones.CODE, clones.TEXT)
            self._link.slow_down(True)
        self._takeovers = found

    def _pass_takeovers(self) -> None:
        passed = clones.pass_time(self._takeovers, time.monotonic(), self._timing.clones)
        if self._takeovers.cloned and not passed.cloned and self._standing.code == clones.CODE:
            self._stand("", "")
            self._link.slow_down(False)
        self._takeovers = passed

    def _look(self) -> renewal.Look:
        named = self._pins().intermediates
        validity = self._identity.validity
        return renewal.Look(
            time.monotonic(),
            validity.used(datetime.now(UTC)),
            intermediate_named=not named or validity.intermediate_sha256 in named,
        )

    def _step(self, event: renewal.Event) -> None:
        """Step the table, and carry out its effects; a question ends in the next event."""
        following: renewal.Event | None = event
        while following is not None:
            self._state, effects = renewal.step(self._state, following, self._timing.renewal)
            following = None
            for effect in effects:
                following = self._carry_out(effect) or following

    def _carry_out(self, effect: renewal.Effect) -> renewal.Event | None:
        match effect:
            case renewal.Ask(reason=reason):
                log.info("the certificate is to be renewed", extra={"reason": reason})
                return self._attempt(lambda: request_renewal(self._identity, self._pins()), renewal.Answered())
            case renewal.Install():
                return self._attempt(self._install, None)
            case renewal.Reconnect():
                self._link.use(self._identity)
            case renewal.Tell(code=code, text=text):
                if not (self._takeovers.cloned and not code):
                    self._stand(code, text)
            case renewal.Hasten(slow=slow):
                self._link.slow_down(slow or self._takeovers.cloned)
        return None

    def _install(self) -> None:
        self._identity = install_renewal(self._folder)
        ends = self._identity.validity.ends.isoformat()
        log.info("the certificate was renewed", extra={"serial": self._identity.validity.serial, "ends": ends})
        self._report("agent", RENEWED_CODE, f"the certificate was renewed; it ends at {ends}")

    def _attempt(self, act: Callable[[], None], done: renewal.Event | None) -> renewal.Event:
        self._beat()
        try:
            act()
        except ServerRefusedError as error:
            code = error.problem or error.code
            return renewal.Failed(time.monotonic(), random.random(), code, str(error), error.retry_after_s)  # noqa: S311
        except (AgentError, ProtocolError, OSError) as error:
            return renewal.Failed(time.monotonic(), random.random(), code_of(error), str(error))  # noqa: S311
        return done or renewal.Installed(time.monotonic(), random.random())  # noqa: S311

    def _stand(self, code: str, text: str) -> None:
        """Keep and tell how the identity stands, where that is news."""
        if code == self._standing.code:
            return
        self._standing = Standing(code=code, text=text[:2_000], since=time.time())
        if code:
            log.warning("the identity does not stand well", extra={"code": code, "reason": text})
            self._report("security", code, text)
        try:
            write_standing(self._folder, self._standing)
        except AgentError as error:
            log.warning("how the identity stands could not be written", extra={"reason": str(error)})
