"""Room on a full disk: what nothing refers to goes first, then a reserve that was kept for this moment.

The reserve lets the agent write its own state, a few KiB, when others have filled the disk: that
it rolled back, how often it started, what it gave up.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Final

from edgewise_agent.store.store import Store

log = logging.getLogger(__name__)

RESERVE_FILE: Final = "reserve"
RESERVE_BYTES: Final = 256 * 1024


class Room:
    """Args:
    store: what may be freed.
    root: the store's folder.
    """

    def __init__(self, store: Store, root: Path) -> None:
        self._store = store
        self._root = root
        self._reserve = root / RESERVE_FILE

    def keep_reserve(self) -> None:
        """Set the reserve up, if it is not there and the disk has plenty; a disk that has not keeps what it has."""
        try:
            if self._reserve.exists() or shutil.disk_usage(self._root).free < 4 * RESERVE_BYTES:
                return
            fd = os.open(self._reserve, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
            finally:
                os.close(fd)
        except OSError as error:
            log.info("the reserve cannot be kept", extra={"reason": str(error)})
            with contextlib.suppress(OSError):
                self._reserve.unlink(missing_ok=True)

    def make(self, referenced: Collection[str], partials: Collection[Path]) -> bool:
        """Free what nothing refers to; true if there was anything.

        Args:
            referenced: digests of bundles that stay.
            partials: unfinished downloads that stay, since work goes on with them.
        """
        try:
            before = shutil.disk_usage(self._root).free
            self._store.collect(referenced, partials)
            freed = shutil.disk_usage(self._root).free - before
        except OSError as error:
            log.warning("no room can be made", extra={"reason": str(error)})
            return False
        if freed > 0:
            log.warning("room was made on the disk", extra={"bytes": freed})
        return freed > 0

    def spend_reserve(self) -> bool:
        """Give up the reserve, for the agent's own state; true if there was one."""
        try:
            self._reserve.unlink()
        except OSError:
            return False
        log.warning("the disk is full: the reserve is spent")
        return True
