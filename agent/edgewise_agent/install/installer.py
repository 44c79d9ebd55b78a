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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgewise_protocol.deployment import IN_PROGRESS
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.manifest import AGENT_MODEL
from msgspec.structs import replace

from edgewise_agent.backoff import Backoff
from edgewise_agent.config import AgentConfig
from edgewise_agent.errors import (
    AgentError,
    StateDamagedError,
    StorageError,
    StoreDamagedError,
    code_of,
)
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
from edgewise_agent.install.events import (
    Booted,
    Damaged,
    Event,
    Failed,
    Settled,
    Stopped,
    TurnGranted,
    Unassigned,
)
from edgewise_agent.install.intake import Gate, Intake, Listener
from edgewise_agent.install.jobs import USE, Job, Worker
from edgewise_agent.install.ledger import Ledger
from edgewise_agent.install.state import InstallState, ModelState, Slot
from edgewise_agent.install.table import DISK_CODES, step, waits_for_disk
from edgewise_agent.install.watcher import Watcher
from edgewise_agent.store.room import Room
from edgewise_agent.store.store import Store
from edgewise_agent.watchdog.liveness import IDLE_S
from edgewise_agent.watchdog.pulse import Beat, no_beat

log = logging.getLogger(__name__)

SETTLED_AFTER_S: Final = 60.0
_STOP_WAIT_S: Final = 15.0


@dataclass(frozen=True)
class Parts:
    """What the installer works with."""

    gate: Gate
    store: Store
    room: Room
    worker: Worker
    activator: Activator
    listener: Listener


class Installer:
    """Args:
    path: the state file.
    parts: collaborators.
    watcher: makes the watcher, given where it posts.
    beat: called at each step of the thread's work, also within long jobs.
    """

    def __init__(
        self,
        path: Path,
        parts: Parts,
        config: AgentConfig,
        watcher: Callable[[Callable[[str, Event], None]], Watcher],
        beat: Beat = no_beat,
    ) -> None:
        self._parts = parts
        self._config = config
        self._beat = beat
        self._ledger = Ledger(path, parts.room)
        self._change = threading.Condition()
        self._posted: deque[tuple[str, Event]] = deque()
        self._hint: bytes | None = None
        self._jobs: dict[str, Job] = {}
        self._collect = False
        self._pauses = Backoff(config.retry_min_s, config.retry_max_s)
        self._intake = Intake(self._ledger, parts.gate, parts.store, parts.listener, config, self._apply, self._tell)
        self._settled_at = time.monotonic() + SETTLED_AFTER_S
        self._stopping = False
        self._watcher = watcher(self.post)
        self._thread = threading.Thread(target=self._run, name="installer", daemon=True)

    @property
    def state(self) -> InstallState:
        return self._ledger.state

    @property
    def _look_again_at(self) -> float:
        return self._intake.look_again_at

    @property
    def serving(self) -> frozenset[str]:
        """Names of the models that serve. Any thread."""
        return frozenset(self._parts.activator.serving)

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
            if self._hint is None and self._intake.last:
                self._hint = self._intake.last
                self._change.notify_all()

    def post(self, model: str, event: Event) -> None:
        """Something happened to a model. Any thread."""
        with self._change:
            self._posted.append((model, event))
            self._change.notify_all()

    # -- the thread ------------------------------------------------------------------------

    def boot(self) -> None:
        """Count the start of the process and carry on where it was cut off."""
        # A process that died while one model was loaded did not die of the others.
        cause = self.state.loading if self.state.loading in self.state.models else ""
        for name in list(self.state.models):
            self._beat()
            booted = Booted(
                at=time.time(),
                max_boots=self._config.probation.max_boots,
                # The launcher counts the starts of agents.
                counted=(not cause or cause == name) and name != AGENT_MODEL,
            )
            try:
                self._apply(name, booted, loading=name)
            except StorageError as error:
                self._boot_unsaved(name, booted, error)
            model = self.state.models.get(name)
            if model is not None:
                self._expect(model)
        try:
            while self._posted:
                self._apply(*self._posted[0])
                self._posted.popleft()
            if self._ledger.problem or self.state.loading:
                self._ledger.save(replace(self.state, loading=""))
        except StorageError as error:
            log.error("the state cannot be written", extra={"reason": str(error)})
        if self._ledger.problem:
            self._parts.listener.happened("security", StateDamagedError.code, self._ledger.problem, {})
        self._parts.room.keep_reserve()
        self._tell()

    def _boot_unsaved(self, name: str, booted: Booted, error: StorageError) -> None:
        """A disk that takes nothing must not keep the last good model from serving; the rest is for later."""
        log.error("the start cannot be noted", extra={"model": name, "reason": str(error)})
        active = self.state.models[name].active
        if active is not None:
            self._serve(name, active)
        self._posted.appendleft((name, booted))

    def _run(self) -> None:
        while True:
            with self._change:
                while not (self._stopping or self._urgent() or self._jobs or self._collect):
                    wait = min(self._settled_at, self._look_again_at) - time.monotonic()
                    if wait <= 0:
                        break
                    self._beat()
                    self._change.wait(min(wait, IDLE_S))
                if self._stopping:
                    break
            try:
                self._beat()
                self._once()
                self._pauses.reset()
            except StorageError as error:
                # Nothing may be done that is not on the disk first: wait, and try the same again.
                log.error("the state cannot be written", extra={"reason": str(error)})
                self._tell()
                self._make_room()
                self._pause()
            except Exception:
                # Without this thread nothing is rolled back any more: it must outlive any defect.
                log.exception("the installer failed for a reason of its own")
                self._pause()
        for name in list(self.state.models):
            try:
                self._apply(name, Stopped(at=time.time()))
            except StorageError as error:
                log.error("the state cannot be written", extra={"reason": str(error)})

    def _pause(self) -> None:
        until = time.monotonic() + self._pauses.next()
        with self._change:
            while not self._stopping and (left := until - time.monotonic()) > 0:
                self._beat()
                self._change.wait(min(left, IDLE_S))

    def _urgent(self) -> bool:
        return bool(self._posted) or self._hint is not None

    def _interrupted(self) -> bool:
        self._beat()
        return self._stopping or self._urgent()

    def _stopped(self) -> bool:
        self._beat()
        return self._stopping

    def _partials(self) -> list[Path]:
        """Unfinished downloads that are still wanted."""
        return [
            self._parts.store.partial(USE, model.target.sha256)
            for model in self.state.models.values()
            if model.target and model.state in IN_PROGRESS
        ]

    def _make_room(self) -> bool:
        return self._parts.room.make(self.state.referenced(), self._partials())

    def _once(self) -> None:
        now = time.monotonic()
        if self._posted:
            self._apply(*self._posted[0])
            self._posted.popleft()
        elif self._hint is not None:
            with self._change:
                data, self._hint = self._hint, None
            try:
                self._intake.consider(data)
            except StorageError:
                self._intake.look_again_soon()  # It may be taken up by half.
                raise
        elif now >= self._settled_at:
            for name in list(self.state.models):
                self._apply(name, Settled(at=time.time()))
            self._settled_at = float("inf")
        elif now >= self._look_again_at:
            self._intake.look_again_at = float("inf")
            self.look_again()
        elif self._jobs:
            self._work()
        elif self._collect:
            self._collect = False
            self._parts.store.collect(self.state.referenced(), self._partials())
            self._parts.room.keep_reserve()

    def _work(self) -> None:
        name, job = next(iter(self._jobs.items()))
        event = self._parts.worker.run(job, self._interrupted, self._stopped)
        if event is None or (isinstance(event, Failed) and event.code in DISK_CODES and self._make_room()):
            return  # The same again: the disk may have room now.
        if self._jobs.get(name) is job:
            del self._jobs[name]
        try:
            self._apply(name, event)
        except StorageError:
            self._jobs.setdefault(name, job)
            raise

    # -- transitions -----------------------------------------------------------------------

    def _apply(self, name: str, event: Event, loading: str = "") -> None:
        """Step a model, persist, act, tell. `loading` names the model whose loading may end the process."""
        before = self.state.models.get(name) or ModelState(model=name)
        after, effects = step(before, event)
        if after == before and not effects:
            return
        gone = isinstance(event, Unassigned) and after.state == "idle"
        state = self.state.without_model(name) if gone else self.state.with_model(after)
        state = replace(state, loading=loading)
        if after.state == "committed":
            self._parts.activator.confirm(name)
        if state != self.state:
            self._save(name, state, effects)
        if waits_for_disk(after):
            self._intake.look_again_soon()
        elif after.state == "committed":
            self._intake.disk_is_well()
        if (after.target, after.confirm_by) != (before.target, before.confirm_by) or after.state not in IN_PROGRESS:
            self._watcher.forget(name)
            self._expect(after)
        for effect in effects:
            self._carry_out(name, effect)
        if after.state != before.state:
            self._announce(before, after)
        self._tell()

    def _save(self, name: str, state: InstallState, effects: Sequence[Effect]) -> None:
        """Persist before anything is done: except that what must not serve is withdrawn, even by a disk that is full.

        After a restart the same would happen again, since the event comes again.
        """
        try:
            self._ledger.save(state)
        except StorageError:
            for effect in effects:
                if isinstance(effect, Restore):
                    self._serve(name, effect.slot, restored=True)
            raise

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
            case Activate(slot=slot):
                self._serve(name, slot)
            case Restore(slot=slot):
                self._serve(name, slot, restored=True)
            case Watch():
                slot = self.state.models[name].active
                # An agent that is still to start is watched by the process that it becomes.
                if slot is not None and (name != AGENT_MODEL or self._parts.activator.serving.get(name) == slot):
                    self._watcher.watch(name, slot)
            case Cancel():
                self._jobs.pop(name, None)
            case Collect():
                self._collect = True

    def _serve(self, name: str, slot: Slot | None, *, restored: bool = False) -> None:
        try:
            self._parts.activator.serve(name, slot, restored=restored)
        except StoreDamagedError as error:
            log.error("a stored bundle is damaged", extra={"model": name, "reason": str(error)})
            if slot is not None:
                self.post(name, Damaged(at=time.time(), sha256=slot.sha256, text=str(error)[:1500]))
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
        self._parts.listener.changed(self._ledger.reported, dict(self._parts.activator.serving))
