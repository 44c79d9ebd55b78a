"""Which files of a state folder belong to a backup, and which of them are secret."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgewise_server.backup.errors import BackupError
from edgewise_server.context import ADMIN_TOKEN_FILE, CRL_FILE, KEYS_FOLDER, ONLINE_FILE
from edgewise_server.settings import SETTINGS_FILE

BROKER_FOLDER: Final = "broker"
_SINGLE: Final = (SETTINGS_FILE, ONLINE_FILE, CRL_FILE, ADMIN_TOKEN_FILE)
_FOLDERS: Final = (KEYS_FOLDER, BROKER_FOLDER)
_PRIVATE: Final = b"PRIVATE KEY"
MAX_FILE_BYTES: Final = 1 << 20
MAX_FILES: Final = 1_000


@dataclass(frozen=True, slots=True)
class StateFile:
    """A small file of the state folder; `name` is its path there."""

    name: str
    data: bytes
    mode: int
    secret: bool


def state_files(state: Path) -> Iterator[StateFile]:
    """The files of a state folder that a backup takes; what runs (sockets, pid files, temporary files) is left out.

    Raises:
        BackupError: a file is too large, or there are too many.
    """
    paths = [state / name for name in _SINGLE]
    for folder in _FOLDERS:
        paths += sorted((state / folder).rglob("*"))
    found = 0
    for path in paths:
        name = path.relative_to(state)
        if path.is_symlink() or not path.is_file() or path.suffix in (".pid", ".tmp") or path.name.startswith("."):
            continue
        found += 1
        if found > MAX_FILES:
            raise BackupError(
                f"{state} holds more than {MAX_FILES} files of keys and broker: take out what is not ours"
            )
        information = path.stat()
        if information.st_size > MAX_FILE_BYTES:
            if name.parts[0] == BROKER_FOLDER:  # the broker's own persistence: it is filled again from the database
                continue
            raise BackupError(f"{path} has more than {MAX_FILE_BYTES} bytes: it does not belong into a state folder")
        data = path.read_bytes()
        secret = name.parts[0] in (KEYS_FOLDER, ADMIN_TOKEN_FILE) or _PRIVATE in data
        yield StateFile(name.as_posix(), data, stat.S_IMODE(information.st_mode), secret)
