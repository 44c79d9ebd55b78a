"""The fleet's TUF repository as this device trusts it.

The only root of trust is the root metadata of the enrolment file; python-tuf verifies
everything else, and its errors are translated here into causes that the fleet is told.
"""

from __future__ import annotations

import hashlib
import logging
import urllib.parse
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from edgewise_protocol.bounds import MAX_METADATA_BYTES, MAX_ROOT_BYTES, MAX_TIMESTAMP_BYTES
from edgewise_protocol.errors import BundleDigestError, UnknownTargetError
from edgewise_protocol.metadata import keys_digest
from edgewise_protocol.targets import SignedFile, from_target_file
from tuf.api import exceptions as tuf
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgewise_agent.durable import sync_dir, write_atomic
from edgewise_agent.errors import (
    DownloadError,
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
    storage_error,
)
from edgewise_agent.trust.fetcher import BASE_URL
from edgewise_agent.trust.updater import DurableUpdater

log = logging.getLogger(__name__)

_EXPIRED: Final[tuple[tuple[str, type[ExpiredError]], ...]] = (
    ("timestamp", TimestampExpiredError),
    ("snapshot", SnapshotExpiredError),
    ("root", RootExpiredError),
)
_ONLINE_KEYS: Final = "online-keys"
_MAX_KEYS_BYTES: Final = 256
_CONFIG: Final = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=32,
    root_max_length=MAX_ROOT_BYTES,
    timestamp_max_length=MAX_TIMESTAMP_BYTES,
    snapshot_max_length=MAX_METADATA_BYTES,
    targets_max_length=MAX_METADATA_BYTES,
)


class Clock(Protocol):
    """See `edgewise_agent.trust.clock.ClockFloor`."""

    def check(self) -> None: ...
    def prove(self, expires: datetime) -> None: ...


class Repository:
    """Verified metadata, refreshed on demand. Not thread-safe: the trust room's owner holds a lock.

    Args:
        folder: python-tuf's metadata folder.
        bootstrap: bytes of the root metadata that the enrolment file brought.
        fetcher: brings metadata files.
        clock: refuses to install below its floor.
        base_url: what the fetcher's URLs begin with.
    """

    def __init__(
        self, folder: Path, bootstrap: bytes, fetcher: FetcherInterface, clock: Clock, *, base_url: str = BASE_URL
    ) -> None:
        self._folder = folder
        self._bootstrap = bootstrap
        self._fetcher = fetcher
        self._clock = clock
        self._base_url = base_url
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
            updater = self._refreshed()
            timestamp = Metadata[Timestamp].from_file(str(self._folder / "timestamp.json")).signed
        except (tuf.RepositoryError, tuf.DownloadError, DeserializationError, OSError) as error:
            raise translate(error) from error
        self._clock.prove(timestamp.expires)
        self._updater = updater
        return self.last_verified()

    def find(self, path: str) -> SignedFile | None:
        """What a trusted role has signed under a target path, after `refresh`."""
        target = self._target(path)[1]
        return None if target is None else from_target_file(target)

    def download(self, path: str, base_url: str, folder: Path) -> Path:
        """Fetch a target by the repository's fetcher into a folder, after `refresh`; kept if it is there already.

        Raises:
            UnknownTargetError: no trusted role has signed the path.
            DownloadError, BundleDigestError, StorageError: it could not be fetched, is not what was signed, or kept.
        """
        updater, target = self._target(path)
        if target is None:
            raise UnknownTargetError(f"no trusted role has signed {path[:200]!r}")
        home = folder / urllib.parse.quote(path, "")
        part = folder / f".{hashlib.sha256(path.encode()).hexdigest()}.part"
        try:
            if updater.find_cached_target(target, str(home)) is None:
                updater.download_target(target, str(part), base_url)
                part.replace(home)
                sync_dir(folder)
        except (tuf.LengthOrHashMismatchError, tuf.DownloadLengthMismatchError) as error:
            part.unlink(missing_ok=True)
            raise BundleDigestError(f"{path[:200]} was tampered with or damaged: {error}") from error
        except tuf.DownloadError as error:
            raise DownloadError(f"{path[:200]} could not be fetched: {error}") from error
        except OSError as error:
            raise StorageError(f"{path[:200]} could not be stored: {error.strerror or error}") from error
        return home

    def _target(self, path: str) -> tuple[Updater, TargetFile | None]:
        if self._updater is None:
            raise MetadataUnavailableError("the metadata have not been refreshed")
        try:
            return self._updater, self._updater.get_targetinfo(path)
        except (tuf.RepositoryError, tuf.DownloadError, DeserializationError, OSError) as error:
            raise translate(error) from error

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

    def _refreshed(self) -> Updater:
        try:
            updater = self._update()
        except tuf.RepositoryError:
            # What replaced keys have signed binds their successors no more (TUF 1.0.33, section 5.3.11).
            # python-tuf forgets it where its signature no longer verifies, which misses an honest
            # timestamp over a false snapshot.
            if self._online_keys() in (None, self._remembered_keys()):
                raise
            for role in (Timestamp.type, Snapshot.type):
                (self._folder / f"{role}.json").unlink(missing_ok=True)
            updater = self._update()
        keys = self._online_keys()
        if keys is not None and (keys != self._remembered_keys() or not (self._folder / _ONLINE_KEYS).exists()):
            write_atomic(self._folder / _ONLINE_KEYS, keys.encode())
        return updater

    def _update(self) -> Updater:
        updater = DurableUpdater(
            str(self._folder), self._base_url, fetcher=self._fetcher, config=_CONFIG, bootstrap=self._bootstrap
        )
        updater.refresh()
        return updater

    def _online_keys(self) -> str | None:
        """Digest of the snapshot and timestamp keys of the newest root; None before there is one."""
        try:
            root = Metadata[Root].from_file(str(self._folder / "root.json")).signed
        except (tuf.StorageError, DeserializationError):
            return None
        return f"{keys_digest(root, Timestamp.type)} {keys_digest(root, Snapshot.type)}"

    def _remembered_keys(self) -> str | None:
        """That digest at the last successful refresh; where none is remembered, nothing was replaced."""
        try:
            return (self._folder / _ONLINE_KEYS).read_bytes()[:_MAX_KEYS_BYTES].decode()
        except (FileNotFoundError, UnicodeDecodeError):
            return self._online_keys()


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
            return storage_error("metadata could not be stored", error)
        case _:
            return TrustError(f"metadata are not valid: {text}")
