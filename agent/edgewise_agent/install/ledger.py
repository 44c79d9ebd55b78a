"""The installer's state: in memory, on the disk, and what keeps the one from becoming the other."""

from __future__ import annotations

import logging
from pathlib import Path

from msgspec.structs import replace

from edgewise_agent.errors import StorageError, code_of
from edgewise_agent.install.state import InstallState, recover_state, save_state
from edgewise_agent.store.room import Room

log = logging.getLogger(__name__)


class Ledger:
    """Args:
    path: the state file.
    room: gives up its reserve, so that the state can be written on a full disk.

    Raises:
        StateError: a newer agent wrote the state.
        StorageError: a damaged state cannot be set aside.
    """

    def __init__(self, path: Path, room: Room) -> None:
        self._path = path
        self._room = room
        self.state, self.problem = recover_state(path)
        self._hindrance: tuple[str, str] | None = None

    def save(self, state: InstallState) -> None:
        """Persist, then take as the present state; raises `StorageError`, and then nothing has changed."""
        try:
            self._write(state)
        except StorageError as error:
            self._hindrance = (code_of(error), f"the state cannot be written: {error}")
            raise
        self._hindrance = None
        self.state = state

    def _write(self, state: InstallState) -> None:
        try:
            save_state(self._path, state)
        except StorageError:
            if not self._room.spend_reserve():
                raise
            save_state(self._path, state)

    @property
    def reported(self) -> InstallState:
        """The state as the fleet is told: a disk that takes nothing is named, though that cannot be noted."""
        if self._hindrance is None:
            return self.state
        code, text = self._hindrance
        return replace(self.state, error_code=code, error=text)
