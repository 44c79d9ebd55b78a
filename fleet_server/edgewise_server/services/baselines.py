"""Baselines of bundles, read from the blobs and kept in a small cache."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from edgewise_protocol.bundle import BundleReader
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.sketches import Baseline, decode_baseline

from edgewise_server.errors import NotFoundError

if TYPE_CHECKING:
    from edgewise_server.blobs.store import BlobStore

_KEPT: Final = 64
log = logging.getLogger(__name__)


class Baselines:
    """Thread-safe. A bundle without a usable baseline gives None, and is not read again."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, Baseline | None] = OrderedDict()

    def of(self, sha256: str) -> Baseline | None:
        """The baseline that travelled in the bundle of this digest."""
        with self._lock:
            if sha256 in self._cache:
                self._cache.move_to_end(sha256)
                return self._cache[sha256]
        found = self._read(sha256)
        with self._lock:
            self._cache[sha256] = found
            while len(self._cache) > _KEPT:
                self._cache.popitem(last=False)
        return found

    def _read(self, sha256: str) -> Baseline | None:
        try:
            with self._blobs.open(sha256) as source:
                reader = BundleReader(source)
                name = reader.manifest.baseline_file
                return decode_baseline(reader.read(name)) if name else None
        except (NotFoundError, ProtocolError) as error:
            log.warning("no baseline in the bundle %s: %s", sha256[:12], error)
            return None
