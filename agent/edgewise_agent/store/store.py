"""The content-addressed store: unpacked bundles, plain files and unfinished downloads.

    bundles/{sha256}/   a verified bundle, unpacked, and its record
    files/{sha256}      a verified file that is not a bundle to serve, e.g. a round's weights
    partial/{name}      downloads in progress; verified again when they are resumed

A bundle appears by one rename after its files are synced, and goes by the removal of its record,
so a folder under `bundles` that has a record is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from edgewise_protocol.bounds import MAX_MANIFEST_BYTES, MIB
from edgewise_protocol.bundle import BundleReader, sha256_of
from edgewise_protocol.errors import BundleDigestError, BundleError, ProtocolError
from edgewise_protocol.manifest import MANIFEST_FILE, Manifest, Sha256, decode_manifest, encode_manifest
from edgewise_protocol.names import check_sha256
from edgewise_protocol.sketches import Baseline, decode_baseline
from edgewise_protocol.targets import SignedFile

from edgewise_agent.durable import sync_dir, write_atomic
from edgewise_agent.errors import AgentError, DiskSpaceError, StoreDamagedError, storage_error
from edgewise_agent.store.match import check_matches

RECORD: Final = ".record.json"
"""No file of a bundle can have this name."""
KEPT_FILES: Final = 6
"""Plain files that stay: the training bundle and weights of the last rounds."""
_MAX_RECORD_BYTES: Final = 64 * 1024


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What was verified when the bundle was unpacked."""

    file: SignedFile
    manifest_sha256: Sha256


@dataclass(frozen=True)
class StoredBundle:
    """A bundle of the store whose files were just checked."""

    folder: Path
    manifest: Manifest
    baseline: Baseline | None

    @property
    def model_path(self) -> Path:
        return self.folder / self.manifest.model_file


class Store:
    """Args:
    root: the store's folder; made if it is missing.
    min_free_mib: free space that a download leaves.
    """

    def __init__(self, root: Path, min_free_mib: int) -> None:
        self._root = root
        self._min_free = min_free_mib * MIB
        self._bundles, self._files, self._partial = root / "bundles", root / "files", root / "partial"
        try:
            for folder in (self._bundles, self._files, self._partial):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error("the store cannot be opened", error) from error

    def partial(self, use: str, sha256: str) -> Path:
        """Where an unfinished download of a file grows; `use` keeps two uses of one file apart."""
        return self._partial / f"{use}-{check_sha256(sha256)}"

    def check_space(self, needed: int) -> None:
        """Raise `DiskSpaceError` unless `needed` bytes fit and leave the free space that the device needs."""
        try:
            free = shutil.disk_usage(self._root).free
        except OSError as error:
            raise storage_error("the free space of the disk cannot be found out", error) from error
        if free < needed + self._min_free:
            raise DiskSpaceError(
                f"{needed // MIB + 1} MiB are needed and {self._min_free // MIB} MiB must stay free; "
                f"the disk has {free // MIB} MiB"
            )

    # -- bundles ---------------------------------------------------------------------------

    def has(self, file: SignedFile) -> bool:
        """Whether this very bundle was verified, as it is named here, and is in the store."""
        try:
            return self._record(file.sha256).file == file
        except (BundleError, OSError):
            return False

    def unpack(self, part: Path, file: SignedFile) -> Manifest:
        """Verify a downloaded bundle and take it in; `part` is removed.

        Raises:
            BundleDigestError, BundleError, MalformedError, BundleMismatchError: it is not what was signed.
            DiskSpaceError, StorageError: it cannot be written.
        """
        self.check_space(file.length)
        home = self._bundles / check_sha256(file.sha256)
        temp: Path | None = None
        try:
            temp = Path(tempfile.mkdtemp(prefix=".unpack-", dir=self._bundles))
            with part.open("rb") as source:
                _check_digest(source, file)
                source.seek(0)
                reader = BundleReader(source)
                manifest = reader.verify()
                check_matches(manifest, file.custom)
                for entry in manifest.files:
                    _write_synced(temp / entry.name, reader.read(entry.name))
            manifest_bytes = encode_manifest(manifest)
            _write_synced(temp / MANIFEST_FILE, manifest_bytes)
            record = Record(file=file, manifest_sha256=hashlib.sha256(manifest_bytes).hexdigest())
            _write_synced(temp / RECORD, msgspec.json.encode(record))
            sync_dir(temp)
            self._take_in(temp, home, record)
            part.unlink()
        except OSError as error:
            raise storage_error("the bundle cannot be stored", error) from error
        finally:
            if temp is not None:
                shutil.rmtree(temp, ignore_errors=True)
        return manifest

    def _take_in(self, temp: Path, home: Path, record: Record) -> None:
        """Give an unpacked bundle its name; one of that name may serve, and is never away."""
        if home.exists() and self._holds(record):
            # The same bytes, signed under another name: only the record is new.
            write_atomic(home / RECORD, msgspec.json.encode(record))
            return
        if home.exists():
            home.rename(home.with_name(f".gone-{temp.name}"))
        temp.rename(home)
        sync_dir(self._bundles)

    def _holds(self, record: Record) -> bool:
        """Whether the store has the bundle of a record undamaged, whatever it was called when it came."""
        try:
            self.open(record.file.sha256)
            return self._record(record.file.sha256).manifest_sha256 == record.manifest_sha256
        except (ProtocolError, AgentError):
            return False

    def open(self, sha256: str) -> StoredBundle:
        """A stored bundle, every file of it checked again: disks damage, too.

        Raises:
            StoreDamagedError: it is missing or damaged.
        """
        folder = self._bundles / check_sha256(sha256)
        try:
            record = self._record(sha256)
            data = _read_bounded(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
            if hashlib.sha256(data).hexdigest() != record.manifest_sha256:
                raise BundleError("the stored manifest is not the one that was verified")
            manifest = decode_manifest(data)
            for entry in manifest.files:
                with (folder / entry.name).open("rb") as file:
                    if sha256_of(file) != (entry.sha256, entry.size):
                        raise BundleError(f"the stored file {entry.name} is damaged")
            name = manifest.baseline_file
            baseline = decode_baseline((folder / name).read_bytes()) if name else None
        except FileNotFoundError as error:
            raise StoreDamagedError(f"the bundle {sha256[:12]} is not whole in the store: a file is missing") from error
        except OSError as error:
            raise StoreDamagedError(f"the stored bundle {sha256[:12]} cannot be read: {error.strerror}") from error
        except ProtocolError as error:
            raise StoreDamagedError(f"the stored bundle {sha256[:12]} is not what was verified: {error}") from error
        return StoredBundle(folder, manifest, baseline)

    def _record(self, sha256: str) -> Record:
        data = _read_bounded(self._bundles / check_sha256(sha256) / RECORD, _MAX_RECORD_BYTES)
        try:
            return msgspec.json.decode(data, type=Record)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BundleError(f"the record of the bundle {sha256[:12]} is damaged") from error

    # -- plain files -----------------------------------------------------------------------

    def keep_file(self, part: Path, file: SignedFile) -> Path:
        """Verify a downloaded file and take it in as it is; raises `BundleDigestError`, `StorageError`."""
        home = self._files / check_sha256(file.sha256)
        try:
            with part.open("rb") as source:
                _check_digest(source, file)
                os.fsync(source.fileno())
            part.replace(home)
            sync_dir(self._files)
        except OSError as error:
            raise storage_error("the file cannot be stored", error) from error
        self._forget_old_files()
        return home

    def file(self, file: SignedFile) -> Path | None:
        """A stored plain file, checked again, or None."""
        home = self._files / check_sha256(file.sha256)
        try:
            with home.open("rb") as source:
                _check_digest(source, file)
            os.utime(home)
        except (OSError, BundleDigestError):
            return None
        return home

    def _forget_old_files(self) -> None:
        """Also unfinished ones, of rounds that were left. What cannot be removed stays for the next time."""
        for paths in (self._files.iterdir(), self._partial.glob("round-*")):
            with contextlib.suppress(OSError):
                for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT_FILES:]:
                    path.unlink(missing_ok=True)

    # -- garbage ---------------------------------------------------------------------------

    def collect(self, referenced: Collection[str], partials: Collection[Path] = ()) -> list[str]:
        """Remove bundles that nothing refers to, and unfinished installations other than `partials`.

        Returns the digests removed. Failures to remove are left for the next time.
        """
        removed: list[str] = []
        for folder in self._bundles.iterdir():
            if folder.name not in referenced and _remove(folder):
                removed.append(folder.name)
        for path in self._partial.glob("install-*"):
            if path not in partials:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        return removed


def _remove(folder: Path) -> bool:
    """Remove a bundle, its record first: without it a folder that is left by half is no bundle."""
    try:
        (folder / RECORD).unlink(missing_ok=True)
        sync_dir(folder)
    except OSError:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True


def _check_digest(source: BinaryIO, file: SignedFile) -> None:
    digest, length = sha256_of(source)
    if (digest, length) != (file.sha256, file.length):
        raise BundleDigestError(
            f"{file.path} was tampered with or damaged: its digest is {digest[:12]}, the signed one {file.sha256[:12]}"
        )


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read_bounded(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise BundleError(f"{path.name} has more than {limit} bytes")
    return data
