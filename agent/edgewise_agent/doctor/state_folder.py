"""The state folder, the disk, and who holds them."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from edgewise_agent.doctor.check import Check, fail, ok, warn

_MIB = 1 << 20


@dataclass(frozen=True)
class Folder:
    """What the file system says of the state folder."""

    path: Path
    exists: bool = False
    readable: bool = False
    writable: bool = False
    mode: int = 0
    owner: int = -1
    user: int = -1
    """Who asks."""
    key_mode: int = 0
    """Of the device's key; 0 if there is none."""
    free: int = 0
    """Bytes."""
    damaged: tuple[str, ...] = ()
    """Files that were set aside."""


def look(path: Path) -> Folder:
    """Look at the state folder; changes nothing."""
    try:
        found = path.stat()
    except OSError:
        return Folder(path, user=os.geteuid())
    if not stat.S_ISDIR(found.st_mode):
        return Folder(path, user=os.geteuid())
    try:
        key_mode = stat.S_IMODE((path / "identity" / "key.pem").stat().st_mode)
    except OSError:
        key_mode = 0
    try:
        damaged = tuple(sorted(p.name for p in path.iterdir() if ".damaged" in p.name))
    except OSError:
        damaged = ()
    return Folder(
        path,
        exists=True,
        readable=os.access(path, os.R_OK | os.X_OK),
        writable=os.access(path, os.W_OK | os.X_OK),
        mode=stat.S_IMODE(found.st_mode),
        owner=found.st_uid,
        user=os.geteuid(),
        key_mode=key_mode,
        free=shutil.disk_usage(path).free,
        damaged=damaged,
    )


def judge(folder: Folder, min_free_mib: int) -> tuple[Check, ...]:
    """Pure."""
    name = "state"
    if not folder.exists:
        return (fail(name, f"{folder.path} is not a folder", "give the agent's state folder with --state", "state"),)
    if not (folder.readable and folder.writable):
        cannot = "read" if not folder.readable else "written"
        return (
            fail(
                name,
                f"{folder.path} cannot be {cannot} by user {folder.user}; it belongs to user {folder.owner}",
                f"run as that user, or `chown -R {folder.user} {folder.path}`",
                "state",
            ),
        )
    checks = [_modes(folder), _space(folder, min_free_mib)]
    if folder.damaged:
        text = f"files were damaged and set aside: {', '.join(folder.damaged[:5])}"
        checks.append(warn("damage", text, code="state-damaged"))
    return tuple(checks)


def _modes(folder: Folder) -> Check:
    if folder.key_mode & 0o077:
        return fail(
            "state",
            f"others may read the device's key (mode {folder.key_mode:04o})",
            f"chmod 600 {folder.path}/identity/key.pem; if others use this machine, enrol the device anew",
        )
    if folder.mode & 0o022:
        return fail("state", f"others may write {folder.path} (mode {folder.mode:04o})", f"chmod 700 {folder.path}")
    if folder.owner != folder.user:
        return warn(
            "state",
            f"{folder.path} belongs to user {folder.owner}; you are user {folder.user}",
            "run the agent as the owner, or files that it makes now cannot be read by the service",
        )
    return ok("state", f"{folder.path} can be read and written (mode {folder.mode:04o})")


def _space(folder: Folder, min_free_mib: int) -> Check:
    free = folder.free // _MIB
    if folder.free < _MIB:
        return fail("disk", f"{folder.free // 1024} KiB are free", code="disk-full")
    if free < min_free_mib:
        return fail("disk", f"{free} MiB are free; {min_free_mib} MiB must stay free", code="disk-space")
    if free < 4 * min_free_mib:
        return warn("disk", f"{free} MiB are free; {min_free_mib} MiB must stay free", "free some disk space soon")
    return ok("disk", f"{free} MiB are free")


def held(state: Path) -> bool | None:
    """Whether a running agent holds the state folder; None if that cannot be found out."""
    try:
        fd = os.open(state / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        # Given back at once, since an agent that starts meanwhile would be refused.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False
