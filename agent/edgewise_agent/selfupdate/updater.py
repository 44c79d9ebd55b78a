"""What the installer needs to update the agent itself: tests a new one, switches to it, and tells whether it holds.

The update runs by the installer's table like that of a model named `edgewise-agent`. What differs is here: to
activate is to switch the slot and to leave, for the launcher to start the other agent; to serve is to run.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgewise_protocol.agent import misfits
from edgewise_protocol.errors import BundleError
from edgewise_protocol.manifest import AgentSpec, Manifest
from packaging.tags import sys_tags

from edgewise_agent.errors import storage_error
from edgewise_agent.install.state import Slot
from edgewise_agent.launcher import SLOT_VARIABLE, VERSION_VARIABLE
from edgewise_agent.selfupdate import boot as boots
from edgewise_agent.selfupdate.checking import SelfChecker
from edgewise_agent.selfupdate.errors import GivenUpError, NoLauncherError
from edgewise_agent.selfupdate.slots import Mark, Slots
from edgewise_agent.store.store import Store, StoredBundle

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AgentHealth:
    """See `edgewise_agent.install.activator.Health`. An agent counts no inferences: it is confirmed by time."""

    version: int
    errors: int
    last_error: str
    inferences_ok: int = 0


class SelfUpdate:
    """Used by the installer's thread; `health` by the watcher's.

    Args:
        state: the device's state folder.
        store: holds agent bundles like others.
        checker: tries a new agent.
        confirm_s: how long after its start a new agent may take to be online and serve, seconds.
        environ: tells the launcher and the slot that this process runs in.
        fault: what is wrong with this agent's service now; empty if nothing is.
    """

    def __init__(
        self,
        state: Path,
        store: Store,
        checker: SelfChecker,
        confirm_s: float,
        fault: Callable[[], str],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._state = state
        self._store = store
        self._checker = checker
        self._confirm_s = confirm_s
        self._fault = fault
        self._slots = Slots(state, store.check_space)
        self._launcher = _number(environ.get(VERSION_VARIABLE, ""))
        self._slot = environ.get(SLOT_VARIABLE, boots.BASE) if self._launcher else boots.BASE
        mark = self._slots.mark(self._slot)
        self.running: Slot | None = None if mark is None else Slot(sha256=mark.sha256, version=mark.version)
        """The bundle that this process is of; None for the base installation."""
        self.leaving = False
        """The slot is switched: this process is to end with status `boot.RESTART`."""
        self.on_leave: Callable[[], None] = lambda: None

    def misfits(self, manifest: Manifest) -> tuple[str, ...]:
        """Reasons why an agent bundle cannot run here."""
        tags = frozenset(str(tag) for tag in sys_tags())
        return misfits(_spec(manifest), tags=tags, python=platform.python_version(), launcher=self._launcher)

    def test(self, bundle: StoredBundle, sha256: str, stopping: Callable[[], bool]) -> dict[str, float]:
        """Put a bundle into the free slot and have it check itself; returns what was measured.

        Raises:
            AgentUpdateError, StorageError: it is not to be switched to.
        """
        slot = self._place(bundle, sha256)
        report = self._checker.run(boots.site_of(self._state, slot), _spec(bundle.manifest), stopping)
        return {"models": float(report.models)}

    def serve(self, slot: Slot | None, *, trial: bool) -> bool:
        """Whether a bundle's agent, or the base's for None, is the one that runs; if not, leave for it.

        Args:
            trial: it has to confirm itself first.

        Raises:
            GivenUpError: the launcher went back from it.
            NoLauncherError: nobody would start it.
            BundleError, AgentUpdateError, StorageError: it cannot be put into a slot.
        """
        if slot == self.running:
            return True
        if self.leaving:
            return False
        boot = boots.load(self._state)
        if slot is not None and boot.failed == slot.sha256:
            raise GivenUpError(boot.code, f"the new agent is given up: {boot.text}")
        if not self._launcher:
            raise NoLauncherError("this agent was not started by edgewise-agent-launcher, which alone can change it")
        if slot is None:
            self._leave(boots.Switch(boots.BASE, "", trial=False))
        else:
            home = self._slots.find(slot.sha256) or self._place(self._store.open(slot.sha256), slot.sha256)
            self._leave(boots.Switch(home, slot.sha256, trial, self._confirm_s))
        return False

    def confirm(self) -> None:
        """This agent holds: the launcher need not go back any more. Raises `StorageError`."""
        boot = boots.load(self._state)
        if boot.current == self._slot:
            self._save(boot, boots.step(boot, boots.Confirm()))

    def health(self) -> AgentHealth:
        """Of the running agent."""
        fault = "another agent is about to start" if self.leaving else self._fault()
        return AgentHealth(self.running.version if self.running else 0, int(bool(fault)), fault)

    def _place(self, bundle: StoredBundle, sha256: str) -> str:
        """The slot that holds a bundle, filled if need be."""
        boot = boots.load(self._state)
        found = self._slots.find(sha256)
        if found is not None and found in (boot.current, boot.fallback, self._slot):
            return found
        taken = {boot.current, self._slot}
        free = [slot for slot in boots.SLOTS if slot not in taken]
        slot = next((slot for slot in free if slot != boot.fallback), free[0])
        self._save(boot, boots.step(boot, boots.Vacate(slot)))
        spec = _spec(bundle.manifest)
        mark = Mark(sha256=sha256, version=bundle.manifest.version, agent_version=spec.version)
        self._slots.fill(slot, mark, spec, bundle.folder)
        return slot

    def _leave(self, switch: boots.Switch) -> None:
        boot = boots.load(self._state)
        self._save(boot, boots.step(boot, switch))
        self.leaving = True
        log.info("another agent is to start", extra={"slot": switch.slot, "sha256": switch.sha256})
        self.on_leave()

    def _save(self, before: boots.Boot, after: boots.Boot) -> None:
        if after == before:
            return
        try:
            boots.save(self._state, after)
        except OSError as error:
            raise storage_error("boot.json cannot be written", error) from error


def _spec(manifest: Manifest) -> AgentSpec:
    if manifest.agent is None:
        raise BundleError(f"the bundle of {manifest.model} {manifest.version} holds no agent")
    return manifest.agent


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
