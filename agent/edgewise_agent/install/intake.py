"""Assignments in: verified and taken up, or refused with the cause, and looked at again when that may help."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from edgewise_protocol.assignment import Accepted
from edgewise_protocol.errors import ProtocolError
from msgspec.structs import replace

from edgewise_agent.backoff import Backoff
from edgewise_agent.config import AgentConfig
from edgewise_agent.errors import (
    AgentError,
    ClockBehindError,
    MetadataUnavailableError,
    SessionError,
    StorageError,
    code_of,
)
from edgewise_agent.install.events import Assigned, Event, Unassigned
from edgewise_agent.install.ledger import Ledger
from edgewise_agent.install.state import InstallState, Slot
from edgewise_agent.store.store import Store
from edgewise_agent.trust.gate import Verdict

log = logging.getLogger(__name__)

_PASSING = MetadataUnavailableError | SessionError | StorageError | ClockBehindError
"""Refusals that say nothing against the assignment, and pass without a new one."""


class Gate(Protocol):
    def assignment(self, data: bytes, accepted: Accepted) -> Verdict: ...


class Listener(Protocol):
    """Who is told of what the installer does."""

    def changed(self, state: InstallState, serving: dict[str, Slot]) -> None: ...
    def happened(self, kind: str, code: str, text: str, data: dict[str, Any]) -> None: ...


class Intake:
    """Used on the installer's thread alone.

    Args:
        ledger: the state.
        gate: verifies.
        store: what is installed.
        listener: told of refusals.
        config: bounds of the waits between tries.
        apply: steps a model.
        tell: reports the state.
    """

    def __init__(
        self,
        ledger: Ledger,
        gate: Gate,
        store: Store,
        listener: Listener,
        config: AgentConfig,
        apply: Callable[[str, Event], None],
        tell: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._gate = gate
        self._store = store
        self._listener = listener
        self._retries = Backoff(config.retry_min_s, config.retry_max_s)
        self._disk_retries = Backoff(config.retry_min_s, config.retry_max_s)
        self._apply = apply
        self._tell = tell
        self.last = b""
        """The newest assignment, as received."""
        self.look_again_at = float("inf")
        """Monotonic seconds."""

    def consider(self, data: bytes) -> None:
        """Verify an assignment and take it up, or say why not; raises `StorageError`."""
        if not data:
            return  # The retained message was cleared; what runs goes on.
        self.last = data
        self.look_again_at = float("inf")
        try:
            verdict = self._gate.assignment(data, self._ledger.state.accepted)
        except (AgentError, ProtocolError) as refusal:
            self._refuse(refusal)
            return
        self._retries.reset()
        self._accept(verdict)
        assignment = verdict.assignment
        named = {file.custom.model: file for file in assignment.bundles}
        for name in [*self._ledger.state.models, *named]:
            file = named.get(name)
            if file is None:
                self._apply(name, Unassigned(at=time.time()))
                continue
            self._apply(
                name,
                Assigned(
                    at=time.time(),
                    target=file,
                    installed=self._store.has(file),
                    assignment_version=assignment.version,
                    deployment=assignment.body.deployment,
                    confirm_within_s=assignment.body.confirm_within_s,
                ),
            )
        self._tell()

    def _accept(self, verdict: Verdict) -> None:
        before = self._ledger.state
        accepted = before.accept(verdict.assignment, *_cause(verdict.overlooked))
        if accepted == before:
            return
        self._ledger.save(accepted)
        log.info(
            "an assignment is accepted",
            extra={"version": verdict.assignment.version, "overlooked": accepted.error_code},
        )
        if accepted.error_code and (accepted.error_code, accepted.error) != (before.error_code, before.error):
            self._listener.happened("security", accepted.error_code, accepted.error, {})

    def _refuse(self, refusal: Exception) -> None:
        code, text = _cause(refusal)
        passing = isinstance(refusal, _PASSING)
        if passing:
            self.look_again_at = time.monotonic() + self._retries.next()
        log.warning("an assignment is refused", extra={"code": code, "reason": text[:500]})
        state = self._ledger.state
        # A time in the text changes at each try; what is noted and told is the cause.
        same_cause = code == state.error_code and (text == state.error or isinstance(refusal, ClockBehindError))
        if same_cause:
            return
        self._ledger.save(replace(state, error_code=code, error=text))
        self._listener.happened("agent" if passing else "security", code, text, {})
        self._tell()

    def look_again_soon(self) -> None:
        """The disk refused: it may not when the same is tried later."""
        self.look_again_at = min(self.look_again_at, time.monotonic() + self._disk_retries.next())

    def disk_is_well(self) -> None:
        self._disk_retries.reset()


def _cause(error: Exception | None) -> tuple[str, str]:
    """Code and text; both empty where nothing is wrong."""
    return (code_of(error), str(error)[:1500]) if error is not None else ("", "")
