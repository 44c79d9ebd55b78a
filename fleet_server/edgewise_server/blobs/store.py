"""Content-addressed files in a folder: streamed in, checked, then renamed into place.

A file that is there under its digest is whole. Accounting and quota are in the database,
see `edgewise_server.services.blobs`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

from edgewise_protocol.chunks import build_index
from edgewise_protocol.names import check_sha256

from edgewise_server.errors import DigestError, NotFoundError, TooLargeError
from edgewise_server.files import sync_folder

_STALE: Final = ".part"


@dataclass(frozen=True)
class StoredBlob:
    """A file in the store, and its chunk index there."""

    sha256: str
    size: int
    chunk_index: str
    index_size: int


class BlobStore:
    """A folder `ab/abcdef...`; several processes may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where a file of this digest lies, if it is there; raises `TopicError` for no digest."""
        return self._folder / check_sha256(sha256)[:2] / sha256

    def exists(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def open(self, sha256: str) -> BinaryIO:
        """Open a file for reading; the caller closes it.

        Raises:
            NotFoundError: it is not in the store.
        """
        try:
            return self.path(sha256).open("rb")
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no blob {sha256}") from error

    def receive(self, limit: int) -> Incoming:
        """Begin to receive a file of at most `limit` bytes."""
        return Incoming(self, self._incoming / f"{secrets.token_hex(8)}{_STALE}", limit)

    def put(self, data: bytes) -> StoredBlob:
        """Store bytes and their chunk index."""
        with self.receive(len(data)) as incoming:
            incoming.write(data)
            return incoming.commit(hashlib.sha256(data).hexdigest())

    def remove(self, sha256: str) -> None:
        """Remove a file, if it is there."""
        self.path(sha256).unlink(missing_ok=True)

    def files(self) -> Iterator[Path]:
        """All files, and the parts of uploads."""
        for folder in sorted(self._folder.iterdir()):
            if folder.is_dir():
                yield from (path for path in sorted(folder.iterdir()) if path.is_file())

    def place(self, part: Path, sha256: str) -> None:
        """Move a synced file of known digest into place."""
        target = self.path(sha256)
        target.parent.mkdir(exist_ok=True)
        part.replace(target)
        sync_folder(target.parent)


class Incoming:
    """A file on its way in: write, then commit; leaving the block without a commit discards it."""

    def __init__(self, store: BlobStore, part: Path, limit: int) -> None:
        self._store, self._part, self._limit = store, part, limit
        self._digest = hashlib.sha256()
        self.size = 0
        self._file = part.open("xb")

    def __enter__(self) -> Incoming:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    def write(self, piece: bytes) -> None:
        """Add bytes.

        Raises:
            TooLargeError: the file exceeds its limit.
        """
        self.size += len(piece)
        if self.size > self._limit:
            raise TooLargeError(f"the file has more than {self._limit} bytes")
        self._digest.update(piece)
        self._file.write(piece)

    def commit(self, sha256: str) -> StoredBlob:
        """Check the digest, make the file durable, and store its chunk index beside it.

        Raises:
            DigestError: the bytes are not those that were announced.
        """
        found = self._digest.hexdigest()
        if found != sha256:
            raise DigestError(f"the bytes have the digest {found}, not {sha256}")
        self._file.flush()
        os.fsync(self._file.fileno())
        with self._part.open("rb") as source:
            index = build_index(source)
        index_sha256 = hashlib.sha256(index).hexdigest()
        if not self._store.exists(index_sha256):
            self._write_index(index, index_sha256)
        self._store.place(self._part, sha256)
        return StoredBlob(sha256, self.size, index_sha256, len(index))

    def _write_index(self, index: bytes, sha256: str) -> None:
        part = self._part.with_name(f"{secrets.token_hex(8)}{_STALE}")
        with part.open("xb") as out:
            out.write(index)
            out.flush()
            os.fsync(out.fileno())
        self._store.place(part, sha256)
