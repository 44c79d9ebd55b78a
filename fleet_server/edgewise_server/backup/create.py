"""Makes a backup while the server runs: one snapshot of the database, then the files that it names."""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from alembic.migration import MigrationContext
from edgewise_protocol.bounds import CHUNK_BYTES, MIB
from sqlalchemy import Connection, select

from edgewise_server.backup.archive import ArchiveWriter, Manifest, TableEntry
from edgewise_server.backup.errors import BackupError
from edgewise_server.backup.state_files import state_files
from edgewise_server.backup.tables import dump
from edgewise_server.blobs.store import BlobStore
from edgewise_server.context import BLOBS_FOLDER, UPLOADS_FOLDER
from edgewise_server.db import Database
from edgewise_server.errors import NotFoundError
from edgewise_server.federation.facts import OPEN_ROUNDS
from edgewise_server.schema import METADATA
from edgewise_server.services import leases
from edgewise_server.services.blob_collection import BACKUP_LEASE
from edgewise_server.settings import Settings
from edgewise_server.uploads.store import UploadStore

LEASE_S: Final = 24 * 3600.0
"""Longest backup. One that was killed on this host is not waited for."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """A finished backup. `left_out` are uploads whose file was gone before it was copied; their rounds are over."""

    manifest: Manifest
    manifest_sha256: str
    left_out: int


@dataclass(frozen=True, slots=True)
class _Upload:
    round_id: str
    device_id: str
    size: int
    sha256: str
    """Empty while it is not whole."""


@dataclass(frozen=True)
class _Snapshot:
    revision: str
    tables: tuple[TableEntry, ...]
    blobs: tuple[tuple[str, int], ...]
    uploads: tuple[_Upload, ...]


def create_backup(settings: Settings, destination: Path, *, with_keys: bool, progress: Progress) -> Made:
    """Write everything that a server needs to go on elsewhere into one file.

    Args:
        with_keys: also the online keys and the broker's; without them the archive holds no private key.

    Raises:
        BackupError: a file is missing or damaged, the disk is full, or another backup is being made.
    """
    database = Database(settings.url)
    try:
        with _keeping_blobs(database), ArchiveWriter(destination) as archive:
            snapshot = _database(database, archive, destination.parent, progress)
            _check_room(destination.parent, snapshot)
            _blobs(archive, BlobStore(settings.state / BLOBS_FOLDER), snapshot, progress)
            left_out = _uploads(archive, UploadStore(settings.state / UPLOADS_FOLDER), snapshot)
            for file in state_files(settings.state):
                if with_keys or not file.secret:
                    archive.add(f"state/{file.name}", io.BytesIO(file.data), len(file.data), file.mode)
            manifest = Manifest(
                format=1,
                created_at=time.time(),
                server_version=version("edgewise-server"),
                schema_revision=snapshot.revision,
                database="sqlite" if database.is_sqlite else "postgresql",
                with_keys=with_keys,
                tables=snapshot.tables,
                files=archive.files,
            )
            return Made(manifest, archive.finish(manifest), left_out)
    finally:
        database.close()


@contextmanager
def _keeping_blobs(database: Database) -> Iterator[None]:
    holder = leases.new_holder()
    try:
        with database.session() as session:
            leases.hold(session, BACKUP_LEASE, holder, time.time(), LEASE_S)
    except leases.LeaseLostError as error:
        raise BackupError(f"another backup is being made ({error}): wait for its end") from error
    try:
        yield
    finally:
        with database.session() as session:
            leases.release(session, BACKUP_LEASE, holder)


def _database(database: Database, archive: ArchiveWriter, folder: Path, progress: Progress) -> _Snapshot:
    with database.snapshot() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
        if revision is None:
            raise BackupError("the database has no tables of ours: there is nothing to back up")
        tables = []
        for number, table in enumerate(METADATA.sorted_tables, 1):
            # a tar's member begins with its length, which is not known before the end
            with tempfile.TemporaryFile(dir=folder) as spooled:
                entry = dump(connection, table, spooled)
                size = spooled.tell()
                spooled.seek(0)
                archive.add(f"tables/{entry.name}.jsonl", spooled, size)
            tables.append(entry)
            progress(f"table {number} of {len(METADATA.sorted_tables)}: {entry.name}, {entry.rows} rows")
        return _Snapshot(revision, tuple(tables), _named_blobs(connection), _named_uploads(connection))


def _named_blobs(connection: Connection) -> tuple[tuple[str, int], ...]:
    blob = METADATA.tables["blobs"].c
    kept = select(blob.sha256, blob.size).where(~blob.dropped).order_by(blob.sha256)
    return tuple((sha256, size) for sha256, size in connection.execute(kept))


def _named_uploads(connection: Connection) -> tuple[_Upload, ...]:
    """The bytes of open rounds' updates that the snapshot counts as stored."""
    client, round_ = METADATA.tables["round_clients"].c, METADATA.tables["rounds"].c
    statement = (
        select(client.round_id, client.device_id, client.state, client.length, client.sha256, client.chunks_through)
        .join(METADATA.tables["rounds"], round_.id == client.round_id)
        .where(
            round_.state.in_(sorted(OPEN_ROUNDS)),
            client.state.in_(("waiting", "uploading", "stored")),
            client.chunks_through > 0,
        )
        .order_by(client.round_id, client.device_id)
    )
    return tuple(
        _Upload(round_id, device_id, min(length, through * CHUNK_BYTES), sha256 if state == "stored" else "")
        for round_id, device_id, state, length, sha256, through in connection.execute(statement)
    )


def _check_room(folder: Path, snapshot: _Snapshot) -> None:
    needed = sum(size for _, size in snapshot.blobs) + sum(upload.size for upload in snapshot.uploads)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BackupError(
            f"{folder} has {free // MIB} MiB free, and the files need {needed // MIB} MiB: write the backup elsewhere"
        )


def _blobs(archive: ArchiveWriter, store: BlobStore, snapshot: _Snapshot, progress: Progress) -> None:
    total, done = sum(size for _, size in snapshot.blobs), 0
    for sha256, size in snapshot.blobs:
        try:
            with store.open(sha256) as source:
                entry = archive.add(f"blobs/{sha256}", source, size)
        except (NotFoundError, BackupError) as error:
            raise BackupError(f"the blob {sha256} cannot be copied ({error}): publish its bundle again") from error
        if entry.sha256 != sha256:
            raise BackupError(
                f"the blob {sha256} is damaged on the disk: remove its file, and publish its bundle again"
            )
        done += size
        progress(f"copied {done >> 20} of {total >> 20} MiB of blobs")


def _uploads(archive: ArchiveWriter, store: UploadStore, snapshot: _Snapshot) -> int:
    left_out = 0
    for upload in snapshot.uploads:
        path = store.path(upload.round_id, upload.device_id)
        try:
            with path.open("rb") as source:
                whole = path.stat().st_size >= upload.size
                entry = None
                if whole:
                    name = f"uploads/{upload.round_id}/{upload.device_id}.safetensors"
                    entry = archive.add(name, source, upload.size)
        except FileNotFoundError:
            entry = None
        if entry is None:
            left_out += 1
        elif upload.sha256 and entry.sha256 != upload.sha256:
            raise BackupError(
                f"the update of {upload.device_id} in {path} is damaged: stop its federation, and try again"
            )
    return left_out
