"""Whether a log of operations would survive a loss of power at any of them. Pure.

A killed process loses nothing of what it wrote; a power cut loses what was not synced, and may keep
a later operation while it loses an earlier one. So what is looked at is the order:

O1. Nothing is renamed to its name before its bytes are synced (a folder: all files in it, and the folder).
O2. A name that was made, renamed or removed is synced, by its folder, before the state of the installer is
    renamed into place: that is the moment which speaks of what was done before.
O3. No bytes of the store are unsynced at that moment.

SQLite orders its own files by its write-ahead log, and `synchronous = FULL`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

SPEAKS = "installed.json"
_EXEMPT = ("outbox.sqlite",)
_STORE = "store"


class Operation(NamedTuple):
    """One line of the shim's log. Paths are relative to the state folder."""

    number: int
    kind: str
    path: PurePosixPath
    other: PurePosixPath | None


def parse(log: str, state: str) -> list[Operation]:
    """The shim's log."""
    found = []
    for line in log.splitlines():
        number, kind, path, other, _length = line.split("\t")
        to = PurePosixPath(other).relative_to(state) if other else None
        found.append(Operation(int(number), kind, PurePosixPath(path).relative_to(state), to))
    return found


def violations(operations: Iterable[Operation]) -> list[str]:
    """What breaks the order, in words."""
    found: list[str] = []
    unsynced: set[PurePosixPath] = set()
    """Files with bytes that are not on the disk."""
    names: dict[PurePosixPath, PurePosixPath] = {}
    """Names that changed, and the folder that must be synced for it."""

    def within(path: PurePosixPath, folder: PurePosixPath) -> bool:
        return path == folder or folder in path.parents

    for number, kind, path, other in operations:
        if path.name.startswith(_EXEMPT):
            continue
        where = f"operation {number}: {kind} {path}"
        if kind in ("write", "truncate"):
            unsynced.add(path)
        elif kind == "sync":
            unsynced.discard(path)
            names = {name: folder for name, folder in names.items() if folder != path}
        elif kind in ("create", "link"):
            names[path] = path.parent
        elif kind == "remove":
            unsynced = {file for file in unsynced if not within(file, path)}
            names = {name: folder for name, folder in names.items() if not within(name, path)}
        elif kind == "rename" and other is not None:
            lost = [str(file) for file in unsynced if within(file, path)]
            lost += [str(name) for name in names if name != path and within(name, path)]
            if lost:
                found.append(f"{where}: not synced before it gets its name: {', '.join(lost)}")  # O1
            if other.name == SPEAKS:
                late = [str(name) for name in names if name != path and not _temporary(name)]
                if late:
                    found.append(f"{where}: the state speaks of names that are not synced: {', '.join(late)}")  # O2
                bytes_late = [str(file) for file in unsynced if file.parts[0] == _STORE]
                if bytes_late:
                    found.append(f"{where}: the state speaks of bytes that are not synced: {bytes_late}")  # O3
            unsynced = {file for file in unsynced if not within(file, path)}
            names = {name: folder for name, folder in names.items() if not within(name, path)}
            names[other] = other.parent
    return found


def _temporary(path: PurePosixPath) -> bool:
    return any(part.startswith(".") for part in path.parts)
