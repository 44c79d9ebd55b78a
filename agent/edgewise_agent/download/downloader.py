"""Fetches a signed file chunk by chunk from retained messages.

Each chunk is verified against the signed index before it is written; what is on the disk
is verified again when a download is resumed, so nothing good is fetched twice. Absent
chunks are asked for with `want`, a bounded number of times.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from edgewise_protocol import topics
from edgewise_protocol.bounds import CHUNK_BYTES
from edgewise_protocol.chunks import ChunkIndex, chunk_count, iter_chunks
from edgewise_protocol.messages import Want, WantedChunks
from edgewise_protocol.targets import SignedFile

from edgewise_agent.backoff import Backoff
from edgewise_agent.download.plan import batches, offset, verified_prefix
from edgewise_agent.durable import sync_dir
from edgewise_agent.errors import ChunkUnavailableError, DownloadError, SessionError, storage_error
from edgewise_agent.session.retained import RetainedReader
from edgewise_agent.store.store import Store

log = logging.getLogger(__name__)

_DIGEST_BYTES: Final = 32
_PAUSES_S: Final = (0.1, 5.0)
"""Shortest and longest wait after a read that the connection broke."""
_ONLINE_POLL_S: Final = 0.5
"""How often an interruption is looked for while the connection is awaited."""


class InterruptedDownloadError(DownloadError):
    """The caller asked for the download to be left; it can be resumed."""

    code = "download-interrupted"


class Link(Protocol):
    """What a downloader needs of the session besides its reader."""

    def wait_online(self, timeout: float) -> bool: ...


@dataclass(frozen=True)
class Patience:
    """How often an absent chunk is asked for, and how long it is awaited: `wait_s`, doubled each time."""

    attempts: int = 4
    wait_s: float = 5.0


class Downloader:
    """Thread-safe for downloads of different uses.

    Args:
        store: keeps unfinished downloads.
        reader: reads retained topics.
        link: the session.
        want: publishes a `Want`.
        patience: bounds of waiting for absent chunks.
    """

    def __init__(
        self, store: Store, reader: RetainedReader, link: Link, want: Callable[[Want], None], patience: Patience
    ) -> None:
        self._store = store
        self._reader = reader
        self._link = link
        self._want = want
        self._patience = patience

    def download(self, file: SignedFile, use: str, interrupted: Callable[[], bool]) -> Path:
        """Fetch all chunks of a file; the whole file's digest is for the store to check.

        Args:
            file: signed length, digest and chunk index.
            use: `install` or `round`; downloads of one file for two uses are apart.
            interrupted: asked between batches; true leaves the download for later.

        Returns:
            the complete unfinished file.

        Raises:
            ChunkError, BundleDigestError: a chunk or the index is not what was signed.
            ChunkUnavailableError: nobody published a chunk.
            InterruptedDownloadError, DiskSpaceError, StorageError: as named.
        """
        index = self._index(file, interrupted)
        path = self._store.partial(use, file.sha256)
        try:
            with path.open("r+b" if path.exists() else "w+b") as part:
                good = verified_prefix(index, iter_chunks(part))
                if good:
                    log.info("a download is resumed", extra={"path": file.path, "chunks": good, "of": len(index)})
                self._store.check_space(file.length - min(file.length, offset(good)))
                part.truncate(min(file.length, offset(good)))
                part.seek(0, os.SEEK_END)
                for batch in batches(good, len(index)):
                    for n, chunk in self._chunks(file.sha256, batch, interrupted):
                        index.check(n, chunk)
                        part.write(chunk)
                part.flush()
                # Before anybody notes that it is complete: a power cut must not turn a good download into a bad one.
                os.fsync(part.fileno())
            sync_dir(path.parent)
        except OSError as error:
            raise storage_error("the download cannot be written", error) from error
        return path

    def _index(self, file: SignedFile, interrupted: Callable[[], bool]) -> ChunkIndex:
        sha256 = file.custom.chunk_index
        expected = _DIGEST_BYTES * chunk_count(file.length)
        data = bytearray()
        for batch in batches(0, chunk_count(expected)):
            for _, chunk in self._chunks(sha256, batch, interrupted):
                data += chunk[: CHUNK_BYTES + 1]
        return ChunkIndex(bytes(data), sha256=sha256, file_sha256=file.sha256, file_length=file.length)

    def _chunks(
        self, sha256: str, numbers: Sequence[int], interrupted: Callable[[], bool]
    ) -> Iterator[tuple[int, bytes]]:
        """The chunks of one batch, in order, unverified."""
        names = {n: topics.blob(sha256, n) for n in numbers}
        found: dict[str, bytes] = {}
        attempt = 0
        pauses = Backoff(*_PAUSES_S)
        while missing := [n for n in numbers if names[n] not in found]:
            if interrupted():
                raise InterruptedDownloadError("the download is left for now")
            if not self._link.wait_online(_ONLINE_POLL_S):
                continue
            if attempt > self._patience.attempts:
                raise ChunkUnavailableError(
                    f"chunk {missing[0]} of {sha256[:12]} is not at the broker, and was not published when asked for"
                )
            try:
                found |= self._read(sha256, {n: names[n] for n in missing}, attempt, interrupted)
            except SessionError as error:
                # A broken connection is not the chunk's fault: the session comes back, and the caller may interrupt.
                log.info("a batch of chunks is asked for again", extra={"reason": str(error)})
                _pause(pauses.next(), interrupted)
                continue
            pauses.reset()
            attempt += 1
        return iter([(n, found[names[n]]) for n in numbers])

    def _read(
        self, sha256: str, names: dict[int, str], attempt: int, interrupted: Callable[[], bool]
    ) -> dict[str, bytes]:
        numbers = {name: n for n, name in names.items()}

        def ask(absent: list[str]) -> None:
            chunks = tuple(sorted(numbers[name] for name in absent))
            log.info("absent chunks are asked for", extra={"sha256": sha256, "chunks": len(chunks)})
            self._want(Want(blobs=(WantedChunks(sha256=sha256, chunks=chunks),)))

        wait_s = self._patience.wait_s * 2**attempt
        return self._reader.read(list(names.values()), ask=ask, wait_s=wait_s, give_up=interrupted)


def _pause(seconds: float, interrupted: Callable[[], bool]) -> None:
    """Wait, but not for longer than the caller has time."""
    until = time.monotonic() + seconds
    while not interrupted() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _ONLINE_POLL_S))
