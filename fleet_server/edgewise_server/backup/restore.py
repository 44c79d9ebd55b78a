"""Restores a backup into an empty state folder and an empty database; what was there is never replaced.

Everything is verified, then staged beside its place. The keys come last, so that a server refuses to run on what an
interrupted restore has left.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alembic import command
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from edgewise_protocol.bounds import MIB
from sqlalchemy import inspect
from sqlalchemy.exc import SQLAlchemyError

from edgewise_server.backup.archive import ArchiveReader, Manifest
from edgewise_server.backup.errors import ArchiveError, NewerArchiveError, NotEmptyError, RestoreError
from edgewise_server.backup.fast_forward import forward_counters, sign_anew
from edgewise_server.backup.tables import continue_sequences, load
from edgewise_server.context import BLOBS_FOLDER, KEYS_FOLDER, UPLOADS_FOLDER, open_context
from edgewise_server.db import Database
from edgewise_server.files import sync_folder
from edgewise_server.models.base import utc_now
from edgewise_server.schema import METADATA, migration_config, upgrade
from edgewise_server.settings import SETTINGS_FILE, Settings, load_settings
from edgewise_server.uploads.store import UploadStore

STAGING: Final = ".restoring"
DATABASE_FILE: Final = "server.db"
_ROOM: Final = 1.2
"""Rows take more room in a database than in an archive."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Restored:
    """A finished restore. `kept_settings`: the folder had a `server.toml` of its own, which stands."""

    manifest: Manifest
    assignments: int
    kept_settings: bool


def restore_backup(state: Path, archive: Path, *, manifest_sha256: str = "", progress: Progress) -> Restored:
    """Restore an archive.

    Args:
        state: a folder that is not there, or is empty but for a `server.toml`.
        manifest_sha256: what `backup` printed; empty: the archive is taken to be ours.

    Raises:
        NotEmptyError: folder or database is not empty.
        ArchiveError: the archive is damaged, was changed, or is a newer server's.
        RestoreError: the disk is full, or the database refuses.
    """
    state = state.resolve()
    kept_settings = _check_folder(state)
    with ArchiveReader(archive) as source:
        if manifest_sha256 and source.manifest_sha256 != manifest_sha256.lower():
            raise ArchiveError(
                f"{archive} has the digest {source.manifest_sha256}, not the one that was given: it is not that backup"
            )
        _check_room(state, source.size)
        source.verify(progress)
        staging = state / STAGING
        try:
            staging.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise RestoreError(f"{staging} cannot be made: {error.strerror}") from error
        try:
            return _restore(state, staging, source, kept_settings, progress)
        except BaseException as error:
            _discard(staging, state, kept_settings)
            if isinstance(error, OSError | SQLAlchemyError):
                raise RestoreError(f"the restore failed, and nothing of it stands in {state}: {error}") from error
            raise


def _restore(state: Path, staging: Path, source: ArchiveReader, kept_settings: bool, progress: Progress) -> Restored:
    manifest = source.manifest
    if kept_settings:
        shutil.copy2(state / SETTINGS_FILE, staging / SETTINGS_FILE)
    _unpack(source, staging, kept_settings, progress)
    settings = _staged_settings(state, staging)
    database = Database(settings.url)
    try:
        _load(database, source, progress)
        forward_counters(database, UploadStore(staging / UPLOADS_FOLDER))
    finally:
        database.close()
    signed = _sign(settings, progress) if (staging / KEYS_FOLDER).is_dir() else 0
    _move_in(staging, state)
    return Restored(manifest, signed, kept_settings)


def _check_folder(state: Path) -> bool:
    """Whether there is nothing but perhaps settings; returns whether there are settings."""
    found = sorted(path.name for path in state.iterdir()) if state.is_dir() else []
    others = [name for name in found if name not in (SETTINGS_FILE, "lost+found")]
    if state.exists() and not state.is_dir():
        raise NotEmptyError(f"{state} is a file: name a folder")
    if STAGING in others:
        raise NotEmptyError(
            f"{state} holds an interrupted restore: remove all that is in it, make the database anew, and try again"
        )
    if others:
        raise NotEmptyError(
            f"{state} is not empty ({', '.join(others[:3])}): stop the server, move the folder away, and restore into "
            "a new one"
        )
    return SETTINGS_FILE in found


def _check_room(state: Path, size: int) -> None:
    folder = next(path for path in (state, *state.parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if size * _ROOM > free:
        raise RestoreError(f"{folder} has {free // MIB} MiB free; the restore needs {int(size * _ROOM) // MIB + 1} MiB")


def _unpack(source: ArchiveReader, staging: Path, kept_settings: bool, progress: Progress) -> None:
    for folder in (BLOBS_FOLDER, UPLOADS_FOLDER):
        (staging / folder).mkdir(mode=0o700)
    done = 0
    for entry in source.manifest.files:
        kind, _, rest = entry.name.partition("/")
        if kind == "tables" or (kept_settings and rest == SETTINGS_FILE):
            continue
        target = {
            "blobs": staging / BLOBS_FOLDER / rest[:2] / rest,
            "uploads": staging / UPLOADS_FOLDER / rest,
            "state": staging / rest,
        }[kind]
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = target.is_relative_to(staging / KEYS_FOLDER)
        _write(target, source, entry.name, 0o600 if secret else entry.mode & 0o755)
        done += entry.size
        progress(f"unpacked {done >> 20} of {source.size >> 20} MiB")


def _write(target: Path, source: ArchiveReader, name: str, mode: int) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as out:
        for piece in source.pieces(name):
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    sync_folder(target.parent)


def _staged_settings(state: Path, staging: Path) -> Settings:
    """The settings as they will be, over the staged files."""
    settings = load_settings(staging)
    if settings.url == f"sqlite:///{staging / DATABASE_FILE}":
        return settings
    if Path(settings.url.removeprefix("sqlite:///")) == state / DATABASE_FILE:
        return settings.model_copy(update={"database_url": f"sqlite:///{staging / DATABASE_FILE}"})
    return settings


def _load(database: Database, source: ArchiveReader, progress: Progress) -> None:
    """Make the schema of the archive's time, load the rows in one transaction, and bring the schema up to date."""
    manifest = source.manifest
    with database.engine.connect() as connection:
        present = inspect(connection).get_table_names()
    if present:
        raise NotEmptyError(
            f"the database has tables already ({', '.join(sorted(present)[:3])}): restore into an empty database, and "
            f"name it as database_url in {SETTINGS_FILE}"
        )
    config = migration_config(database)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if manifest.schema_revision not in known:
        raise NewerArchiveError(
            f"the backup is of server {manifest.server_version[:40]} with schema {manifest.schema_revision[:40]!r}, "
            "which this server does not know: install that version or a newer one"
        )
    try:
        command.upgrade(config, manifest.schema_revision)
    except CommandError as error:
        raise RestoreError(f"the schema cannot be made: {error}") from error
    with database.engine.connect() as connection:
        made = set(inspect(connection).get_table_names())
    with database.session() as session:
        connection = session.connection()
        for number, entry in enumerate(manifest.tables, 1):
            if entry.name not in made:
                raise ArchiveError(f"there is no table {entry.name[:64]!r} in schema {manifest.schema_revision}")
            load(connection, entry, source.pieces(f"tables/{entry.name}.jsonl"))
            progress(f"table {number} of {len(manifest.tables)}: {entry.name}, {entry.rows} rows")
    upgrade(database)
    with database.session() as session:
        continue_sequences(session.connection(), METADATA.sorted_tables)


def _sign(settings: Settings, progress: Progress) -> int:
    context = open_context(settings)
    try:
        return sign_anew(context, utc_now(), progress)
    finally:
        context.close()


def _move_in(staging: Path, state: Path) -> None:
    """Into place, the keys last: without them `run` refuses."""
    entries = sorted(staging.iterdir(), key=lambda path: path.name == KEYS_FOLDER)
    for path in entries:
        path.replace(state / path.name)
        sync_folder(state)
    staging.rmdir()
    sync_folder(state)


def _discard(staging: Path, state: Path, kept_settings: bool) -> None:
    """Remove what a failed restore has staged. What had been moved in stays for a person to look at."""
    shutil.rmtree(staging, ignore_errors=True)
    if not kept_settings and state.is_dir() and not any(state.iterdir()):
        state.rmdir()
