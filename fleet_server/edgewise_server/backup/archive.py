"""The archive: an uncompressed tar of named members, each with its digest in a manifest that stands last.

Only four kinds of names exist, so that no member can be written anywhere else than where its name says; whatever
else a tar can hold (links, devices, sparse files, names twice) is refused.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Literal

import msgspec

from edgewise_server.backup.errors import ArchiveError, BackupError, NewerArchiveError
from edgewise_server.files import sync_folder

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 1 << 28
MAX_MEMBERS: Final = 1_000_000
PIECE: Final = 1 << 20

_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,127}"
_NAMES: Final = re.compile(
    rf"tables/[a-z][a-z0-9_]{{0,63}}\.jsonl|blobs/[0-9a-f]{{64}}|uploads/{_PART}/{_PART}\.safetensors"
    rf"|state/(?:server\.toml|online\.json|crl\.pem|admin\.token|(?:keys|broker)/{_PART}(?:/{_PART}){{0,3}})"
)

ColumnKind = Literal["plain", "float", "time", "bytes", "json"]


class Column(msgspec.Struct, frozen=True):
    """A column of a dumped table, and how its values are written."""

    name: str
    kind: ColumnKind


class TableEntry(msgspec.Struct, frozen=True):
    """A dumped table; tables stand in an order in which what is referred to comes first."""

    name: str
    columns: tuple[Column, ...]
    rows: int


class FileEntry(msgspec.Struct, frozen=True):
    """A member of the archive. `mode` are its permission bits where it is a file of the state folder."""

    name: str
    size: int
    sha256: str
    mode: int = 0o600


class Manifest(msgspec.Struct, frozen=True):
    """What an archive holds, and of which server, when. `created_at` is seconds since the epoch."""

    format: int
    created_at: float
    server_version: str
    schema_revision: str
    database: str
    with_keys: bool
    tables: tuple[TableEntry, ...]
    files: tuple[FileEntry, ...]


class _Version(msgspec.Struct):
    format: int


def is_name(name: str) -> bool:
    """Whether a member may have this name."""
    return _NAMES.fullmatch(name) is not None


class _Hashing:
    """Reads on, and digests what went by."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._source.read(size)
        self.digest.update(piece)
        return piece


class ArchiveWriter:
    """Writes to a temporary file beside its destination; only `finish` makes the destination appear."""

    def __init__(self, destination: Path) -> None:
        """Begin.

        Raises:
            BackupError: the destination exists, or its folder cannot be written to.
        """
        self._destination = destination
        self._temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
        self._files: list[FileEntry] = []
        if destination.exists():
            raise BackupError(f"{destination} exists already: name another file, a backup replaces none")
        try:
            descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise BackupError(f"{destination} cannot be written: {error.strerror}") from error
        self._stream = os.fdopen(descriptor, "wb")
        self._tar = tarfile.open(fileobj=self._stream, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - see close

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._temporary.unlink(missing_ok=True)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        return tuple(self._files)

    def add(self, name: str, source: BinaryIO, size: int, mode: int = 0o600) -> FileEntry:
        """Add the next `size` bytes of a stream.

        Raises:
            BackupError: the stream ended too early, or the archive cannot be written.
        """
        if not is_name(name):
            raise BackupError(f"{name!r} cannot be a member of a backup: rename the file, or take it out of the folder")
        reading = _Hashing(source)
        self._put(name, reading, size, mode)
        entry = FileEntry(name, size, reading.digest.hexdigest(), mode)
        self._files.append(entry)
        return entry

    def finish(self, manifest: Manifest) -> str:
        """Write the manifest, make everything durable, and let the destination appear; returns the manifest's digest.

        Raises:
            BackupError: the disk is full, or somebody else has made the destination meanwhile.
        """
        data = msgspec.json.encode(manifest)
        reading = _Hashing(io.BytesIO(data))
        self._put(MANIFEST, reading, len(data), 0o600)
        try:
            self._tar.close()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            if self._destination.exists():
                raise BackupError(f"{self._destination} was made by somebody else meanwhile: name another file")
            self._temporary.replace(self._destination)
            sync_folder(self._destination.parent)
        except OSError as error:
            raise BackupError(f"{self._destination} cannot be written: {error.strerror}") from error
        return reading.digest.hexdigest()

    def _put(self, name: str, source: _Hashing, size: int, mode: int) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, mode
        try:
            self._tar.addfile(member, source)
        except OSError as error:
            raise BackupError(f"{name} cannot be written to the backup: {error}") from error


class ArchiveReader:
    """An archive whose members are exactly what its manifest says; their content is verified as it is read."""

    def __init__(self, path: Path) -> None:
        """Open an archive and read its manifest.

        Raises:
            ArchiveError: it is damaged, was changed, or is no backup.
            NewerArchiveError: a newer server made it.
        """
        self._path = path
        try:
            self._stream = path.open("rb")
        except OSError as error:
            raise ArchiveError(f"{path} cannot be read: {error.strerror}") from error
        try:
            self._members = self._index()
            data = self._content(self._members.pop(MANIFEST, None))
            self.manifest_sha256 = hashlib.sha256(data).hexdigest()
            self.manifest = _decode(data)
            self._files = {entry.name: entry for entry in self.manifest.files}
            self._check()
        except BaseException as error:
            self._stream.close()
            if isinstance(error, tarfile.TarError | EOFError | OSError | msgspec.MsgspecError | ValueError):
                raise ArchiveError(f"{path} is no backup, or is damaged: {error}") from error
            raise

    def __enter__(self) -> ArchiveReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    @property
    def size(self) -> int:
        """Bytes of all members."""
        return sum(entry.size for entry in self.manifest.files)

    def pieces(self, name: str) -> Iterator[bytes]:
        """A member's content, in pieces of at most a MiB.

        Raises:
            ArchiveError: after the last piece, if the content is not what the manifest says. Use nothing before.
        """
        entry = self._files[name]
        source = self._open(self._members[name])
        digest = hashlib.sha256()
        left = entry.size
        while left and (piece := source.read(min(PIECE, left))):
            digest.update(piece)
            left -= len(piece)
            yield piece
        if left or digest.hexdigest() != entry.sha256:
            raise ArchiveError(f"{name} in {self._path} is damaged or was changed: use another backup")

    def verify(self, progress: Callable[[str], None]) -> None:
        """Read everything once.

        Raises:
            ArchiveError: a member is not what the manifest says.
        """
        done = 0
        for entry in self.manifest.files:
            for _ in self.pieces(entry.name):
                pass
            done += entry.size
            progress(f"verified {done >> 20} of {self.size >> 20} MiB")

    def _index(self) -> dict[str, tarfile.TarInfo]:
        found: dict[str, tarfile.TarInfo] = {}
        with tarfile.open(fileobj=self._stream, mode="r:") as tar:
            for member in tar:
                regular = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
                if not regular or member.name in found or not (is_name(member.name) or member.name == MANIFEST):
                    raise ArchiveError(
                        f"{self._path} holds {member.name[:200]!r}, which no backup holds: do not use it"
                    )
                if len(found) >= MAX_MEMBERS:
                    raise ArchiveError(f"{self._path} has more than {MAX_MEMBERS} members")
                found[member.name] = member
        return found

    def _open(self, member: tarfile.TarInfo) -> BinaryIO:
        self._stream.seek(member.offset_data)
        return self._stream

    def _content(self, member: tarfile.TarInfo | None) -> bytes:
        if member is None:
            raise ArchiveError(f"{self._path} has no manifest: it is no backup, or the end of it is missing")
        if member.size > MAX_MANIFEST_BYTES:
            raise ArchiveError(f"the manifest of {self._path} is larger than {MAX_MANIFEST_BYTES} bytes")
        data = self._open(member).read(member.size)
        if len(data) != member.size:
            raise ArchiveError(f"{self._path} ends in the middle of its manifest")
        return data

    def _check(self) -> None:
        """The manifest and the tar name the same members."""
        if len(self._files) != len(self.manifest.files) or self._files.keys() != self._members.keys():
            raise ArchiveError(f"{self._path} does not hold what its manifest says: it was changed, do not use it")
        for name, entry in self._files.items():
            if self._members[name].size != entry.size or (name.startswith("blobs/") and name[6:] != entry.sha256):
                raise ArchiveError(f"{name} in {self._path} is not what the manifest says: do not use this archive")
        tables = [f"tables/{table.name}.jsonl" for table in self.manifest.tables]
        if sorted(tables) != sorted(name for name in self._files if name.startswith("tables/")):
            raise ArchiveError(f"the tables in {self._path} are not those of its manifest: do not use this archive")


def _decode(data: bytes) -> Manifest:
    version = msgspec.json.decode(data, type=_Version).format
    if version > FORMAT:
        raise NewerArchiveError(
            f"the backup has format {version}, and this server reads formats up to {FORMAT}: install a newer server"
        )
    return msgspec.json.decode(data, type=Manifest)
