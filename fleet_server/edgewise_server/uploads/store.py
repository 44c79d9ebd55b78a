"""Files of updates on their way in: chunks written in place, synced before they are acknowledged."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from edgewise_protocol.bounds import CHUNK_BYTES
from edgewise_protocol.errors import TopicError
from edgewise_protocol.names import check_name

_READ: Final = 1 << 20


class UploadStore:
    """A folder `{round}/{device}.safetensors`. Device and round are names, so no path leaves the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, round_id: str, device_id: str) -> Path:
        return self._folder / check_name(round_id) / f"{check_name(device_id)}.safetensors"

    def write(self, round_id: str, device_id: str, first: int, chunks: Sequence[bytes]) -> None:
        """Write consecutive chunks, `first` being the number of the first; returns once they are on the disk."""
        path = self.path(round_id, device_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            for n, chunk in enumerate(chunks, first):
                view, at = memoryview(chunk), n * CHUNK_BYTES
                while view:
                    written = os.pwrite(handle, view, at)
                    view, at = view[written:], at + written
            os.fsync(handle)
        finally:
            os.close(handle)

    def digest(self, round_id: str, device_id: str, length: int) -> str:
        """SHA-256 of the whole file, cut to its announced length."""
        digest = hashlib.sha256()
        with self.path(round_id, device_id).open("r+b") as file:
            file.truncate(length)
            while piece := file.read(_READ):
                digest.update(piece)
        return digest.hexdigest()

    def remove(self, round_id: str, device_id: str) -> None:
        """Remove one update, if it is there."""
        self.path(round_id, device_id).unlink(missing_ok=True)

    def rounds(self) -> list[str]:
        """Rounds of which there are updates; a folder that no round can be called by is none."""
        found = []
        for path in sorted(self._folder.glob("*")):
            with suppress(TopicError):
                if path.is_dir():
                    found.append(check_name(path.name))
        return found

    def remove_round(self, round_id: str) -> None:
        """Remove all updates of a round: they are not kept longer than they are needed."""
        shutil.rmtree(self._folder / check_name(round_id), ignore_errors=True)
