"""The database: one engine, one way to open a transaction.

SQLite runs with a write-ahead log and foreign keys; its writing transactions begin
IMMEDIATE, so that two writers queue at the start instead of failing in the middle.
PostgreSQL is chosen by URL (`postgresql+psycopg://...`).
"""

from __future__ import annotations

import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlmodel import Session

from edgewise_server.errors import BusyError, DatabaseUnavailableError, StorageFullError

BUSY_TIMEOUT_S: Final = 30
_ROOM_EVERY_S: Final = 1.0
"""Shortest time between two attempts to give a full disk room."""
_ROOM_BUSY_S: Final = 1.0
_READ_ONLY: Final = "edgewise_read_only"
_DISK_FULL: Final = "53100"
"""SQLSTATE of PostgreSQL, appendix A."""


class Database:
    """An engine for one URL. Threads may share it; a session belongs to one thread at a time."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        options: dict[str, Any] = {}
        if self.is_sqlite:
            options["connect_args"] = {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}
        else:
            options |= {"pool_pre_ping": True, "pool_size": 10, "max_overflow": 20}
        self.engine: Engine = create_engine(url, **options)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self._reading = self.engine.execution_options(**{_READ_ONLY: True})
        self._room = threading.Lock()
        self._room_made_at = 0.0

    @contextmanager
    def session(self, *, read_only: bool = False) -> Iterator[Session]:
        """One transaction: committed when the block ends, rolled back when it raises.

        The transaction begins with the first statement. With `read_only` nothing is
        committed, and SQLite takes no write lock.

        Raises:
            BusyError: another writer held the database for longer than `BUSY_TIMEOUT_S`.
            StorageFullError, DatabaseUnavailableError: as named.
        """
        try:
            with Session(self._reading if read_only else self.engine, expire_on_commit=False) as session:
                yield session
                if not read_only:
                    session.commit()
        except OperationalError as error:
            meant = translated(error)
            if isinstance(meant, StorageFullError):
                self._make_room()
            raise meant from error

    def _make_room(self) -> None:
        """Write SQLite's log back and cut it off: on a full disk it may hold all the room that there is.

        The log is longer than what it stands for, and is else written back only after a commit, which a full disk
        refuses. Best effort, and not more often than `_ROOM_EVERY_S`.
        """
        if not self.is_sqlite or not self._room.acquire(blocking=False):
            return
        try:
            now = time.monotonic()
            if now - self._room_made_at >= _ROOM_EVERY_S:
                self._room_made_at = now
                with (
                    suppress(sqlite3.Error),
                    closing(sqlite3.connect(str(self.engine.url.database), timeout=_ROOM_BUSY_S)) as connection,
                ):
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self._room.release()

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection that reads the database as it was at its first statement, while others write."""
        engine = self._reading
        if not self.is_sqlite:
            engine = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with engine.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()


def translated(error: OperationalError) -> Exception:
    """What a failure of the database itself means to an operator; the error itself where it means nothing more."""
    text = str(error.orig)
    if "database is locked" in text:
        return BusyError("the database is busy; try again")
    if "disk is full" in text or getattr(error.orig, "sqlstate", None) == _DISK_FULL:
        return StorageFullError("the database cannot grow, its disk is full; nothing is stored until there is room")
    if error.connection_invalidated or "disk I/O error" in text or "connect" in text or "unable to open" in text:
        return DatabaseUnavailableError(f"the database cannot be used: {text.strip()[:300]}; see that it runs")
    return error


def hold_lock(session: Session, name: str) -> None:
    """Hold a named lock until the transaction ends, against every process on this database.

    On SQLite the writing transaction itself excludes all other writers.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": zlib.crc32(name.encode())})
    else:
        session.connection()


def get_database(request: Request) -> Database:
    """FastAPI dependency: the database of the running app."""
    database: Database = request.app.state.edgewise.database
    return database


def get_session(request: Request) -> Iterator[Session]:
    """FastAPI dependency: a transaction that is committed before the response is sent.

    GET and HEAD read only. Declare it as `SessionDep`: without `scope="function"` FastAPI
    would answer before the commit.
    """
    with get_database(request).session(read_only=request.method in ("GET", "HEAD")) as session:
        yield session


SessionDep = Annotated[Session, Depends(get_session, scope="function")]


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin by itself: `_begin_sqlite` does
    cursor = connection.cursor()
    until = time.monotonic() + BUSY_TIMEOUT_S
    while True:  # SQLite asks no busy handler where it changes the journal of a file that another process begins too
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.02)
    # A batch of telemetry touches a page for each device and index: they fit in the cache, and are not copied back
    # into the database after every commit, but after 8 MiB: a log that took all the room could not be written back.
    for pragma in (
        "synchronous=FULL",
        "foreign_keys=ON",
        "cache_size=-32768",
        "wal_autocheckpoint=2000",
        "journal_size_limit=16777216",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    reading = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
