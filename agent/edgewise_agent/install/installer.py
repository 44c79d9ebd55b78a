"""The installer's thread: verified assignments in, transitions persisted, effects carried out.

The rules are in `table`; this shell only orders things: what happened is applied first,
then a new assignment is looked at, then work goes on. The state is on the disk before an
effect is carried out, so that a crash in between is made good by `Booted`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from edgewise_protocol.assignment import Assignment
from edgewise_protocol.deployment import IN_PROGRESS
from edgewise_protocol.errors import ProtocolError
from msgspec.structs import replace

from edgewise_agent.config import AgentConfig
from edgewise_agent.errors import AgentError, MetadataUnavailableError, SessionError, StorageError, code_of
from edgewise_agent.install.activator import Activator
from edgewise_agent.install.effects import (
    Activate,
    Cancel,
    Collect,
    Download,
    Effect,
    RequestTurn,
    Restore,
    SelfTest,
    Verify,
    Watch,
)
from edgewise_agent.install.events import Assigned, Booted, Event, Failed, Settled, Stopped, TurnGranted, Unassigned
from edgewise_agent.install.jobs import USE, Job, Worker
from edgewise_agent.install.state import InstallState, ModelState, Slot, load_state, save_state
from edgewise_agent.install.table import step
from edgewise_agent.install.watcher import Watcher
from edgewise_agent.store.store import Store

log = logging.getLogger(__name__)

SETTLED_AFTER_S: Final = 60.0
_STOP_WAIT_S: Final = 15.0


class Gate(Protocol):
    def assignment(self, data: bytes, accepted_version: int) -> Assignment: ...


class Listener(Protocol):
    """Who is told of what the installer does."""

    def changed(self, state: InstallState, serving: dict[str, Slot]) -> None: ...
    def happened(self, kind: str, code: str, text: str, data: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Parts:
    """What the installer works with."""

    gate: Gate
    store: Store
    worker: Worker
    activator: Activator
    listener: Listener


class Installer:
    """Args:
    path: the state file.
    parts: collaborators.
    watcher: makes the watcher, given where it posts.
    """

    def __init__(
        self,
        path: Path,
        parts: Parts,
        config: AgentConfig,
        watcher: Callable[[Callable[[str, Event], None]], Watcher],
    ) -> None:
        self._path = path
        self._parts = parts
        self._config = config
        self._state = load_state(path)
        self._change = threading.Condition()
        self._posted: deque[tuple[str, Event]] = deque()
        self._hint: bytes | None = None
        self._last_hint = b""
        self._jobs: dict[str, Job] = {}
        self._collect = False
        self._retry_s = 0.0
        self._look_again_at = float("inf")
        self._settled_at = time.monotonic() + SETTLED_AFTER_S
        self._stopping = False
        self._watcher = watcher(self.post)
        self._thread = threading.Thread(target=self._run, name="installer", daemon=True)

    @property
    def state(self) -> InstallState:
        return self._state

    def start(self) -> None:
        """Bring what served before into service, then start the thread."""
        self.boot()
        self._watcher.start()
        self._thread.start()

    def stop(self) -> None:
        with self._change:
            self._stopping = True
            self._change.notify_all()
        self._watcher.stop()
        if self._thread.is_alive():
            self._thread.join(_STOP_WAIT_S)

    def hint(self, data: bytes) -> None:
        """There may be a new assignment: look. Only the newest counts. Any thread."""
        with self._change:
            self._hint = data
            self._change.notify_all()

    def look_again(self) -> None:
        """Look at the last assignment again, e.g. because new metadata may have made it acceptable."""
        with self._change:
            if self._hint is None and self._last_hint:
                self._hint = self._last_hint
                self._change.notify_all()

    def post(self, model: str, event: Event) -> None:
        """Something happened to a model. Any thread."""
        with self._change:
            self._posted.append((model, event))
            self._change.notify_all()

    # -- the thread ------------------------------------------------------------------------

    def boot(self) -> None:
        """Count the start of the process and carry on where it was cut off."""
        booted = Booted(at=time.time(), max_boots=self._config.probation.max_boots)
        for name in list(self._state.models):
            self._apply(name, booted)
            model = self._state.models.get(name)
            if model is not None:
                self._expect(model)
        while self._posted:
            self._apply(*self._posted[0])
            self._posted.popleft()
        self._tell()

    def _run(self) -> None:
        while True:
            with self._change:
                while not (self._stopping or self._urgent() or self._jobs or self._collect):
                    wait = min(self._settled_at, self._look_again_at) - time.monotonic()
                    if wait <= 0:
                        break
                    self._change.wait(min(wait, threading.TIMEOUT_MAX))
                if self._stopping:
                    break
            try:
                self._once()
            except StorageError as error:
                # Nothing may be done that is not on the disk first: wait, and try the same again.
                log.error("the state cannot be written", extra={"reason": str(error)})
                self._pause()
            except Exception:
                # Without this thread nothing is rolled back any more: it must outlive any defect.
                log.exception("the installer failed for a reason of its own")
                self._pause()
        for name in list(self._state.models):
            try:
                self._apply(name, Stopped(at=time.time()))
            except StorageError as error:
                log.error("the state cannot be written", extra={"reason": str(error)})

    def _pause(self) -> None:
        with self._change:
            self._change.wait_for(lambda: self._stopping, self._config.retry_min_s)

    def _urgent(self) -> bool:
        return bool(self._posted) or self._hint is not None

    def _interrupted(self) -> bool:
        return self._stopping or self._urgent()

    def _once(self) -> None:
        now = time.monotonic()
        if self._posted:
            self._apply(*self._posted[0])
            self._posted.popleft()
        elif self._hint is not None:
            with self._change:
                data, self._hint = self._hint, None
            self._consider(data)
        elif now >= self._settled_at:
            self._settled_at = float("inf")
            for name in list(self._state.models):
                self._apply(name, Settled(at=time.time()))
        elif now >= self._look_again_at:
            self._look_again_at = float("inf")
            self.look_again()
        elif self._jobs:
            self._work()
        elif self._collect:
            self._collect = False
            keep = [
                self._parts.store.partial(USE, model.target.sha256)
                for model in self._state.models.values()
                if model.target and model.state in IN_PROGRESS
            ]
            self._parts.store.collect(self._state.referenced(), keep)

    def _work(self) -> None:
        name, job = next(iter(self._jobs.items()))
        event = self._parts.worker.run(job, self._interrupted, lambda: self._stopping)
        if event is None:
            return
        if self._jobs.get(name) is job:
            del self._jobs[name]
        try:
            self._apply(name, event)
        except StorageError:
            self._jobs.setdefault(name, job)
            raise

    # -- assignments -----------------------------------------------------------------------

    def _consider(self, data: bytes) -> None:
        """Verify an assignment and take it up, or say why not."""
        if not data:
            return  # The retained message was cleared; what runs goes on.
        self._last_hint = data
        self._look_again_at = float("inf")
        try:
            assignment = self._parts.gate.assignment(data, self._state.assignment_version)
        except (AgentError, ProtocolError) as refusal:
            self._refuse(refusal)
            return
        self._retry_s = 0.0
        accepted = replace(
            self._state,
            assignment_version=assignment.version,
            deployment=assignment.body.deployment,
            error_code="",
            error="",
        )
        if accepted != self._state:
            save_state(self._path, accepted)
            self._state = accepted
            log.info("an assignment is accepted", extra={"version": assignment.version})
        named = {file.custom.model: file for file in assignment.bundles}
        for name in [*self._state.models, *named]:
            file = named.get(name)
            if file is None:
                self._apply(name, Unassigned(at=time.time()))
                continue
            self._apply(
                name,
                Assigned(
                    at=time.time(),
                    target=file,
                    installed=self._parts.store.has(file),
                    assignment_version=assignment.version,
                    deployment=assignment.body.deployment,
                    confirm_within_s=assignment.body.confirm_within_s,
                ),
            )
        self._tell()

    def _refuse(self, refusal: Exception) -> None:
        code, text = code_of(refusal), str(refusal)[:1500]
        passing = isinstance(refusal, MetadataUnavailableError | SessionError | StorageError)
        if passing:
            self._retry_s = min(max(self._retry_s * 2, self._config.retry_min_s), self._config.retry_max_s)
            self._look_again_at = time.monotonic() + self._retry_s
        log.warning("an assignment is refused", extra={"code": code, "reason": text[:500]})
        if (code, text) == (self._state.error_code, self._state.error):
            return
        refused = replace(self._state, error_code=code, error=text)
        save_state(self._path, refused)
        self._state = refused
        self._parts.listener.happened("agent" if passing else "security", code, text, {})
        self._tell()

    # -- transitions -----------------------------------------------------------------------

    def _apply(self, name: str, event: Event) -> None:
        """Step a model, persist, act, tell."""
        before = self._state.models.get(name) or ModelState(model=name)
        after, effects = step(before, event)
        if after == before and not effects:
            return
        gone = isinstance(event, Unassigned) and after.state == "idle"
        state = self._state.without_model(name) if gone else self._state.with_model(after)
        if state != self._state:
            save_state(self._path, state)
            self._state = state
        if (after.target, after.confirm_by) != (before.target, before.confirm_by) or after.state not in IN_PROGRESS:
            self._watcher.forget(name)
            self._expect(after)
        for effect in effects:
            self._carry_out(name, effect)
        if after.state != before.state:
            self._announce(before, after)
        self._tell()

    def _expect(self, model: ModelState) -> None:
        """A clock that was set back must not lengthen the time to confirm."""
        if model.target is not None and model.state in IN_PROGRESS:
            left = min(max(model.confirm_by - time.time(), 0.0), model.confirm_within_s)
            self._watcher.expect(model.model, model.target.sha256, left)

    def _carry_out(self, name: str, effect: Effect) -> None:
        match effect:
            case Download() | Verify() | SelfTest():
                self._jobs.pop(name, None)
                self._jobs[name] = effect
            case RequestTurn(sha256=sha256):
                self._jobs.pop(name, None)
                self.post(name, TurnGranted(at=time.time(), sha256=sha256))
            case Activate(slot=slot) | Restore(slot=slot):
                self._serve(name, slot)
            case Watch():
                slot = self._state.models[name].active
                if slot is not None:
                    self._watcher.watch(name, slot)
            case Cancel():
                self._jobs.pop(name, None)
            case Collect():
                self._collect = True

    def _serve(self, name: str, slot: Slot | None) -> None:
        try:
            self._parts.activator.serve(name, slot)
        except (AgentError, ProtocolError) as error:
            log.warning("a model cannot serve", extra={"model": name, "code": code_of(error), "reason": str(error)})
            if slot is not None:
                failed = Failed(at=time.time(), sha256=slot.sha256, code=code_of(error), text=str(error)[:1500])
                self.post(name, failed)

    def _announce(self, before: ModelState, after: ModelState) -> None:
        target = after.target or before.target
        data: dict[str, Any] = {"model": after.model, "state": after.state, "from": before.state}
        if target is not None:
            data |= {"version": target.custom.version, "sha256": target.sha256}
        data |= {"deployment": after.deployment, "assignment_version": after.assignment_version}
        log.info("deployment", extra={**data, "code": after.error_code})
        self._parts.listener.happened("deployment", after.error_code or after.state, after.error, data)

    def _tell(self) -> None:
        self._parts.listener.changed(self._state, dict(self._parts.activator.serving))
