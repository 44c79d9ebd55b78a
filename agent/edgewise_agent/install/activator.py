"""Lets a stored bundle serve, or nothing, by the serving table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from edgewise_protocol.manifest import AGENT_MODEL, Manifest
from edgewise_protocol.sketches import Baseline

from edgewise_agent.install.state import Slot
from edgewise_agent.store.store import Store, StoredBundle


class Health(Protocol):
    """What the table tells of the active version since it became active."""

    @property
    def version(self) -> int: ...
    @property
    def inferences_ok(self) -> int: ...
    @property
    def errors(self) -> int: ...
    @property
    def last_error(self) -> str: ...


class Table(Protocol):
    """What the installer needs of `edgewise_agent.serving.table.ModelTable`."""

    def activate(
        self,
        model: str,
        version: int,
        sha256: str,
        model_path: Path,
        manifest: Manifest,
        baseline: Baseline | None,
    ) -> None: ...
    def deactivate(self, model: str) -> None: ...
    def health(self, model: str) -> Health: ...


class AgentSlots(Protocol):
    """What the installer needs of `edgewise_agent.selfupdate.updater.SelfUpdate`."""

    @property
    def running(self) -> Slot | None: ...
    def misfits(self, manifest: Manifest) -> tuple[str, ...]: ...
    def test(self, bundle: StoredBundle, sha256: str, stopping: Callable[[], bool]) -> dict[str, float]: ...
    def serve(self, slot: Slot | None, *, trial: bool) -> bool: ...
    def confirm(self) -> None: ...


class Activator:
    """Remembers what serves, so that restoring what never stopped costs nothing.

    Args:
        agent: switches the agent itself.
    """

    def __init__(self, store: Store, table: Table, agent: AgentSlots) -> None:
        self._store = store
        self._table = table
        self._agent = agent
        self.serving: dict[str, Slot] = {}

    def confirm(self, model: str) -> None:
        """The model is about to be committed: of an agent, the launcher must know first. Raises `StorageError`."""
        if model == AGENT_MODEL:
            self._agent.confirm()

    def serve(self, model: str, slot: Slot | None, *, restored: bool = False) -> None:
        """Let a slot serve; what served before goes on until it has answered.

        Args:
            restored: it was confirmed before.

        Raises:
            BundleError: the stored bundle is damaged.
            AgentError: the engine refuses it. In both cases nothing has changed.
        """
        if model == AGENT_MODEL:
            if self._agent.serve(slot, trial=not restored) and slot is not None:
                self.serving[model] = slot
            else:
                self.serving.pop(model, None)
            return
        if slot is None:
            self._table.deactivate(model)
            self.serving.pop(model, None)
            return
        if self.serving.get(model) == slot:
            return
        bundle = self._store.open(slot.sha256)
        self._table.activate(model, slot.version, slot.sha256, bundle.model_path, bundle.manifest, bundle.baseline)
        self.serving[model] = slot
