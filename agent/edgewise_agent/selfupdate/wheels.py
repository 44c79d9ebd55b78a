"""Unpacks wheels into a folder: PEP 427 installation without scripts, and without running anything.

The bytes were verified by the bundle's digest; what a wheel may do to the disk is bounded here all the same.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from edgewise_protocol.bounds import MIB

from edgewise_agent.errors import storage_error
from edgewise_agent.selfupdate.errors import WheelError

MAX_FILES: Final = 20_000
MAX_BYTES: Final = 1024 * MIB
_PIECE: Final = 1 << 20
_LINK: Final = 0o120000
_KIND: Final = 0o170000
_CODE: Final = ("purelib", "platlib")
"""Parts of `NAME.data` that belong among the packages; scripts, headers and data have no use here."""


@dataclass
class Allowance:
    """What is left for one slot."""

    files: int = MAX_FILES
    size: int = MAX_BYTES


def unpacked_bytes(wheel: Path) -> int:
    """Bytes that a wheel says it unpacks to; raises `WheelError`."""
    return sum(member.file_size for member in _members(wheel))


def unpack(wheel: Path, site: Path, left: Allowance) -> None:
    """Unpack a wheel into `site`, every file synced.

    Raises:
        WheelError: it is damaged, too large, or names a place outside of `site`.
        StorageError: the disk refused.
    """
    members = _members(wheel)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in members:
                place = _place(member)
                if place is None:
                    continue
                left.files -= 1
                if left.files < 0:
                    raise WheelError(f"the agent's wheels hold more than {MAX_FILES} files")
                home = site / place
                home.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, home.open("xb") as file:
                    while piece := source.read(_PIECE):
                        left.size -= len(piece)
                        if left.size < 0:
                            raise WheelError(f"the agent's wheels unpack to more than {MAX_BYTES // MIB} MiB")
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
    except FileExistsError as error:
        raise WheelError(f"two of the agent's wheels hold the same file: {wheel.name}") from error
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise WheelError(f"{wheel.name} is not a whole wheel: {error}") from error
    except OSError as error:
        raise storage_error("the new agent cannot be stored", error) from error


def _members(wheel: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise WheelError(f"{wheel.name} is not a wheel: {error}") from error
    except OSError as error:
        raise storage_error(f"{wheel.name} cannot be read", error) from error
    if len(members) > MAX_FILES:
        raise WheelError(f"{wheel.name} holds {len(members)} files; at most {MAX_FILES} are allowed")
    return members


def _place(member: zipfile.ZipInfo) -> PurePosixPath | None:
    """Where a file goes, relative to the packages; None for what is not installed."""
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or not path.parts:
        raise WheelError(f"a wheel holds the path {member.filename[:200]!r}")
    if (member.external_attr >> 16) & _KIND == _LINK:
        raise WheelError(f"a wheel holds the link {member.filename[:200]!r}")
    if member.is_dir():
        return None
    if path.parts[0].endswith(".data"):
        inside = path.parts[1:]
        return PurePosixPath(*inside[1:]) if inside[:1] and inside[0] in _CODE and inside[1:] else None
    return path
