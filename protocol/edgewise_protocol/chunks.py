"""Content-addressed files in chunks, each verifiable on its own.

A file of digest F is cut into chunks of `CHUNK_BYTES`, published on `blob/F/n`. Its chunk
index is the concatenation of the chunks' raw SHA-256 digests; the index is itself a blob,
and its digest stands in the signed target's `custom`, so that a tampered chunk is named
before the whole file is there, and a resumed download keeps what it has. An index that is
longer than one chunk is fetched like a file whose chunks are verified by the whole digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO, Final

from edgewise_protocol.bounds import CHUNK_BYTES, MAX_BUNDLE_BYTES
from edgewise_protocol.errors import BundleDigestError, ChunkError

_DIGEST: Final = 32


def chunk_count(length: int) -> int:
    """Chunks of a file of `length` bytes; an empty file has one empty chunk."""
    return max(1, -(-length // CHUNK_BYTES))


def iter_chunks(source: BinaryIO) -> Iterator[bytes]:
    """The chunks of a file, read from its current position."""
    first = True
    while True:
        chunk = source.read(CHUNK_BYTES)
        if not chunk and not first:
            return
        yield chunk
        if len(chunk) < CHUNK_BYTES:
            return
        first = False


def build_index(source: BinaryIO) -> bytes:
    """The chunk index of a file."""
    return b"".join(hashlib.sha256(chunk).digest() for chunk in iter_chunks(source))


class ChunkIndex:
    """A verified chunk index.

    Raises:
        BundleDigestError: the index is not the one that was signed, or not of this file's length.
    """

    def __init__(self, data: bytes, *, sha256: str, file_sha256: str, file_length: int) -> None:
        if not 0 <= file_length <= MAX_BUNDLE_BYTES:
            raise BundleDigestError(f"a file of {file_length} bytes is out of bounds")
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BundleDigestError(f"the chunk index of {file_sha256[:12]} is not the one that was signed")
        if len(data) != _DIGEST * chunk_count(file_length):
            raise BundleDigestError(f"the chunk index of {file_sha256[:12]} is not for a file of {file_length} bytes")
        self._data = data
        self.file_sha256 = file_sha256
        self.file_length = file_length

    def __len__(self) -> int:
        return len(self._data) // _DIGEST

    def size(self, n: int) -> int:
        """Bytes of chunk `n`."""
        return min(CHUNK_BYTES, self.file_length - n * CHUNK_BYTES)

    def check(self, n: int, chunk: bytes) -> None:
        """Raise `ChunkError` unless these bytes are chunk `n`."""
        if hashlib.sha256(chunk).digest() != self._data[n * _DIGEST : (n + 1) * _DIGEST]:
            raise ChunkError(
                f"chunk {n} of {self.file_sha256[:12]} was tampered with or damaged: its digest is not the signed one"
            )
