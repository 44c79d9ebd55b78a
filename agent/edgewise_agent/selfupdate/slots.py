"""The two slots that hold agents beside the base installation: `STATE/agent/slots/{a,b}`.

A slot is a folder of packages, unpacked from a verified bundle's wheels; it appears by one rename,
with `slot.json` in it, so a slot with that file is whole. Nothing of the base installation is
ever changed, and packages that the wheels require are taken from it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from edgewise_protocol.manifest import AgentSpec, Sha256, Version

from edgewise_agent.durable import sync_dir, write_atomic
from edgewise_agent.errors import storage_error
from edgewise_agent.selfupdate import boot as boots
from edgewise_agent.selfupdate.wheels import Allowance, unpack, unpacked_bytes

MARK: Final = "slot.json"
_MAX_MARK_BYTES: Final = 16 * 1024
_PARTIAL: Final = ".filling"


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """`slot.json`: what is in a slot."""

    sha256: Sha256
    """Of the bundle."""
    version: Version
    """The bundle's number."""
    agent_version: str


class Slots:
    """Args:
    state: the device's state folder.
    check_space: raises `DiskSpaceError` unless so many bytes fit.
    """

    def __init__(self, state: Path, check_space: Callable[[int], None]) -> None:
        self._state = state
        self._folder = boots.folder_of(state) / "slots"
        self._check_space = check_space

    def mark(self, slot: str) -> Mark | None:
        """What a slot holds; None where it is empty or damaged."""
        if slot not in boots.SLOTS:
            return None
        try:
            with (self._folder / slot / MARK).open("rb") as file:
                return msgspec.json.decode(file.read(_MAX_MARK_BYTES), type=Mark)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def find(self, sha256: str) -> str | None:
        """The slot that holds a bundle."""
        for slot in boots.SLOTS:
            mark = self.mark(slot)
            if mark is not None and mark.sha256 == sha256:
                return slot
        return None

    def fill(self, slot: str, mark: Mark, spec: AgentSpec, wheels: Path) -> None:
        """Write a slot anew from the wheels in a folder of the store.

        Raises:
            WheelError: a wheel is damaged.
            DiskSpaceError, StorageError: it does not fit, or the disk refused.
        """
        files = [wheels / wheel.file for wheel in spec.wheels]
        self._check_space(sum(unpacked_bytes(file) for file in files))
        partial = self._folder / _PARTIAL
        try:
            shutil.rmtree(partial, ignore_errors=True)
            site = partial / "site"
            site.mkdir(parents=True, mode=0o755)
            left = Allowance()
            for file in files:
                unpack(file, site, left)
            write_atomic(partial / MARK, msgspec.json.encode(mark))
            for folder, _, _ in os.walk(partial):
                sync_dir(Path(folder))
            home = self._folder / slot
            if home.exists():
                # Without its mark a slot is nothing, should the removal be cut short.
                (home / MARK).unlink(missing_ok=True)
                shutil.rmtree(home)
            partial.rename(home)
            sync_dir(self._folder)
        except OSError as error:
            raise storage_error("the new agent cannot be stored", error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
