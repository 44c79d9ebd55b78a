"""Which chunks to ask for next. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from edgewise_protocol.bounds import CHUNK_BYTES, MAX_CHUNKS_PER_REQUEST
from edgewise_protocol.chunks import ChunkIndex
from edgewise_protocol.errors import ChunkError


def batches(start: int, total: int) -> Iterator[range]:
    """Chunk numbers from `start` to `total`, as many at once as one request may name."""
    for first in range(start, total, MAX_CHUNKS_PER_REQUEST):
        yield range(first, min(first + MAX_CHUNKS_PER_REQUEST, total))


def verified_prefix(index: ChunkIndex, chunks: Iterator[bytes]) -> int:
    """How many of the chunks that a former download left are good, from the first on."""
    good = 0
    for n, chunk in enumerate(chunks):
        if n >= len(index) or len(chunk) != index.size(n):
            break
        try:
            index.check(n, chunk)
        except ChunkError:
            break
        good = n + 1
    return good


def offset(chunk: int) -> int:
    """Where a chunk begins in its file, bytes."""
    return chunk * CHUNK_BYTES
