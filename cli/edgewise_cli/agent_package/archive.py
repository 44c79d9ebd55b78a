"""A folder's worth of files as one .tar.gz: the same files give the same bytes."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Final

MTIME: Final = 1577836800
"""2020-01-01: of every file in a package."""
_EXECUTABLE: Final = (".sh",)
# Wheels are compressed already.
_LEVEL: Final = 1


def write(stream: IO[bytes], root: str, entries: Mapping[str, bytes | Path], tell: Callable[[float], None]) -> None:
    """Write an archive with everything in the folder `root`, by name.

    Args:
        entries: name to bytes, or to a file of this machine.
        tell: is called with the part that is written, 0 to 1.

    Raises:
        OSError: as the disk says.
    """
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0, compresslevel=_LEVEL) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for folder in sorted({"", *(str(Path(name).parent) for name in entries)} - {"."}):
            tar.addfile(_info(f"{root}/{folder}".rstrip("/"), tarfile.DIRTYPE, 0o755, 0))
        for done, name in enumerate(sorted(entries)):
            tell(done / len(entries))
            entry = entries[name]
            mode = 0o755 if name.endswith(_EXECUTABLE) else 0o644
            size = entry.stat().st_size if isinstance(entry, Path) else len(entry)
            info = _info(f"{root}/{name}", tarfile.REGTYPE, mode, size)
            with entry.open("rb") if isinstance(entry, Path) else io.BytesIO(entry) as source:
                tar.addfile(info, source)


def _info(name: str, kind: bytes, mode: int, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.mtime = kind, mode, size, MTIME
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info
