"""Erasing a device: what it holds of the fleet is removed, the keys first.

The key is what others could misuse; so it goes before anything that takes time, and an erasure that is
interrupted leaves no usable identity. Overwriting before removal helps on disks that write in place; on
flash it cannot be promised, which is why the server must revoke the certificate as well.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from edgewise_agent.durable import sync_dir
from edgewise_agent.errors import NotEnrolledError, StorageError
from edgewise_agent.identity.identity import (
    CARD_FILE,
    CERTIFICATE_FILE,
    FOLDER,
    KEY_FILE,
    NEXT_KEY_FILE,
    RENEWED_FILE,
)
from edgewise_agent.locking import lock_state

_SECRETS: Final = (KEY_FILE, NEXT_KEY_FILE)
_FIRST: Final = (RENEWED_FILE, CERTIFICATE_FILE, CARD_FILE)
_MAX_SECRET: Final = 64 * 1024


def erase(state: Path) -> None:
    """Remove everything below the state folder, and the folder: keys first, then the identity, then the rest.

    Repeatable: an erasure that was interrupted is finished by the next one.

    Raises:
        NotEnrolledError: the folder is not an agent's.
        StateError: an agent runs in it.
        StorageError: something cannot be removed.
    """
    folder = state / FOLDER
    if not folder.is_dir():
        raise NotEnrolledError(f"{state} holds no identity: is it the state folder of a device?")
    lock = lock_state(state)
    try:
        for name in _SECRETS:
            _shred(folder / name)
        for name in _FIRST:
            (folder / name).unlink(missing_ok=True)
        sync_dir(folder)
        for path in sorted(state.iterdir(), key=lambda path: path.name == FOLDER):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        sync_dir(state)
        state.rmdir()
    except OSError as error:
        raise StorageError(f"{error.filename or state} cannot be removed: {error.strerror or error}") from error
    finally:
        lock.close()


def _shred(path: Path) -> None:
    """Overwrite a small file in place, then remove it."""
    try:
        with path.open("r+b") as file:
            length = min(file.seek(0, os.SEEK_END), _MAX_SECRET)
            file.seek(0)
            file.write(os.urandom(length))
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        return
    path.unlink()
