"""Files that survive a power cut: written beside, synced, then renamed over the old one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from edgewise_agent.errors import StorageError


def sync_dir(folder: Path) -> None:
    """Make renames and removals in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file's content; a reader, or a reboot, sees the old bytes or the new ones.

    Raises:
        StorageError: the disk refused; the old content is untouched.
    """
    temp = ""
    try:
        fd, temp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temp).replace(path)
        sync_dir(path.parent)
    except OSError as error:
        if temp:
            Path(temp).unlink(missing_ok=True)
        raise StorageError(f"{path.name} could not be written: {error.strerror or error}") from error
