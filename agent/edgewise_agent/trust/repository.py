"""The fleet's TUF repository as this device trusts it.

The only root of trust is the root metadata of the enrolment file; python-tuf verifies
everything else, and its errors are translated here into causes that the fleet is told.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from edgewise_protocol.bounds import MAX_METADATA_BYTES, MAX_ROOT_BYTES, MAX_TIMESTAMP_BYTES
from edgewise_protocol.targets import SignedFile, from_target_file
from tuf.api import exceptions as tuf
from tuf.api.metadata import Metadata, Root, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgewise_agent.durable import sync_dir
from edgewise_agent.errors import (
    ExpiredError,
    MetadataRollbackError,
    MetadataTamperedError,
    MetadataUnavailableError,
    MetadataUnsignedError,
    RootExpiredError,
    SnapshotExpiredError,
    StorageError,
    TargetsExpiredError,
    TimestampExpiredError,
    TrustError,
)
from edgewise_agent.trust.clock import ClockFloor
from edgewise_agent.trust.fetcher import BASE_URL

log = logging.getLogger(__name__)

_EXPIRED: Final[tuple[tuple[str, type[ExpiredError]], ...]] = (
    ("timestamp", TimestampExpiredError),
    ("snapshot", SnapshotExpiredError),
    ("root", RootExpiredError),
)
_CONFIG: Final = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=32,
    root_max_length=MAX_ROOT_BYTES,
    timestamp_max_length=MAX_TIMESTAMP_BYTES,
    snapshot_max_length=MAX_METADATA_BYTES,
    targets_max_length=MAX_METADATA_BYTES,
)


class Repository:
    """Verified metadata, refreshed on demand. Not thread-safe: the trust room's owner holds a lock.

    Args:
        folder: python-tuf's metadata folder.
        bootstrap: bytes of the root metadata that the enrolment file brought.
        fetcher: brings metadata files.
        clock: refuses to install below its floor.
    """

    def __init__(self, folder: Path, bootstrap: bytes, fetcher: FetcherInterface, clock: ClockFloor) -> None:
        self._folder = folder
        self._bootstrap = bootstrap
        self._fetcher = fetcher
        self._clock = clock
        self._updater: Updater | None = None

    def refresh(self) -> Targets:
        """Bring the top-level metadata up to date; returns the trusted targets metadata.

        Raises:
            ClockBehindError, MetadataUnavailableError, ExpiredError, TrustError: as named.
        """
        self._clock.check()
        self._updater = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            updater = Updater(
                str(self._folder), BASE_URL, fetcher=self._fetcher, config=_CONFIG, bootstrap=self._bootstrap
            )
            updater.refresh()
            timestamp = Metadata[Timestamp].from_file(str(self._folder / "timestamp.json")).signed
            self._sync()
        except (tuf.RepositoryError, tuf.DownloadError, DeserializationError, OSError) as error:
            raise translate(error) from error
        self._clock.prove(timestamp.expires)
        self._updater = updater
        return self.last_verified()

    def find(self, path: str) -> SignedFile | None:
        """What a trusted role has signed under a target path, after `refresh`."""
        if self._updater is None:
            raise MetadataUnavailableError("the metadata have not been refreshed")
        try:
            target = self._updater.get_targetinfo(path)
        except (tuf.RepositoryError, tuf.DownloadError, DeserializationError, OSError) as error:
            raise translate(error) from error
        return None if target is None else from_target_file(target)

    def last_verified(self) -> Targets:
        """The targets metadata of the last successful refresh, whatever has expired since.

        Only for withdrawing to what is installed already: never a reason to install.

        Raises:
            MetadataUnavailableError: no refresh has ever succeeded.
            TrustError: the files are damaged.
        """
        try:
            root = Metadata[Root].from_file(str(self._folder / "root.json")).signed
            targets = Metadata[Targets].from_file(str(self._folder / "targets.json"))
            root.verify_delegate(Targets.type, targets.signed_bytes, targets.signatures)
        except tuf.StorageError as error:
            raise MetadataUnavailableError("no metadata have been verified yet") from error
        except (tuf.RepositoryError, DeserializationError, ValueError) as error:
            raise translate(error) from error
        return targets.signed

    def _sync(self) -> None:
        """Make python-tuf's files durable: what was accepted must not be forgotten by a power cut."""
        for path in self._folder.glob("*.json"):
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_dir(self._folder)


def translate(error: Exception) -> TrustError | StorageError:
    """The agent's error for one of python-tuf's."""
    text = str(error)
    match error:
        case tuf.ExpiredMetadataError():
            kind = next((kind for word, kind in _EXPIRED if word in text), TargetsExpiredError)
            return kind(f"the fleet's metadata have expired: {text}")
        case tuf.UnsignedMetadataError():
            return MetadataUnsignedError(f"metadata are not signed by the role that they are of: {text}")
        case tuf.BadVersionNumberError():
            return MetadataRollbackError(f"metadata are older than ones accepted before: {text}")
        case tuf.LengthOrHashMismatchError():
            return MetadataTamperedError(f"metadata are not those that their parent names: {text}")
        case tuf.DownloadLengthMismatchError():
            return MetadataTamperedError(f"metadata are longer than they may be: {text}")
        case tuf.DownloadError():
            return MetadataUnavailableError(f"metadata could not be fetched: {text}")
        case OSError():
            return StorageError(f"metadata could not be stored: {text}")
        case _:
            return TrustError(f"metadata are not valid: {text}")
