"""Files that survive a power cut: written beside, synced, then renamed over the old one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Final

from edgewise_agent.errors import storage_error

TEMPORARY: Final = ".tmp"
"""How the names of files end that are not yet what they will be called."""


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
        fd, temp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temp).replace(path)
        sync_dir(path.parent)
    except OSError as error:
        if temp:
            # What cannot be removed either is swept at the next start.
            with contextlib.suppress(OSError):
                Path(temp).unlink(missing_ok=True)
        raise storage_error(f"{path.name} could not be written", error) from error


def sweep(folder: Path) -> None:
    """Remove what `write_atomic` left in and below a folder when the process died. Nobody else may write there now."""
    for path in folder.rglob(f".*{TEMPORARY}"):
        with contextlib.suppress(OSError):
            path.unlink()
