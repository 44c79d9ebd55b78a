"""Wheels unpacked into one folder of packages, as a Debian package carries them (PEP 427, without scripts)."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final

from edgewise_cli.agent_package.wheelhouse import Wheel
from edgewise_cli.errors import FilesError, RefusedError

MAX_FILES: Final = 40_000
MAX_BYTES: Final = 2 << 30
_PIECE: Final = 1 << 20
_CODE: Final = ("purelib", "platlib")


def unpack(wheels: Iterable[Wheel], site: Path) -> int:
    """Unpack wheels into `site`; the bytes that they take.

    Raises:
        RefusedError: a wheel names a place outside of `site`, a link, a file of another's, or far too much.
        FilesError: the disk refuses.
    """
    files, size = 0, 0
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel.path) as archive:
                for member in archive.infolist():
                    place = _place(member, wheel)
                    if place is None:
                        continue
                    files, size = files + 1, size + member.file_size
                    if files > MAX_FILES or size > MAX_BYTES:
                        raise RefusedError(f"the wheels hold more than {MAX_FILES} files or {MAX_BYTES >> 30} GiB")
                    _write(archive, member, site / place, wheel)
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
            raise RefusedError(f"{wheel.path.name} is not a whole wheel: {error}") from error
        except OSError as error:
            raise FilesError(f"{wheel.path.name} cannot be unpacked: {error.strerror or error}") from error
    return size


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, home: Path, wheel: Wheel) -> None:
    if home.exists():
        raise RefusedError(f"{wheel.path.name} holds {home.name}, which another wheel holds too")
    home.parent.mkdir(parents=True, exist_ok=True)
    left = member.file_size
    with archive.open(member) as source, home.open("xb") as file:
        while piece := source.read(_PIECE):
            left -= len(piece)
            if left < 0:
                raise RefusedError(f"{wheel.path.name}: {member.filename[:100]} is larger than it says")
            file.write(piece)
    home.chmod(0o755 if (member.external_attr >> 16) & stat.S_IXUSR else 0o644)


def _place(member: zipfile.ZipInfo, wheel: Wheel) -> PurePosixPath | None:
    """Where a file goes, relative to the packages; None for what is not installed."""
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or not path.parts:
        raise RefusedError(f"{wheel.path.name} holds the path {member.filename[:200]!r}")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise RefusedError(f"{wheel.path.name} holds the link {member.filename[:200]!r}")
    if member.is_dir():
        return None
    if path.parts[0].endswith(".data"):
        inside = path.parts[1:]
        return PurePosixPath(*inside[1:]) if inside[:1] and inside[0] in _CODE and inside[1:] else None
    return path
