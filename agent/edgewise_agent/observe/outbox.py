"""The outbox: what the device has to say, on disk until the server has stored it.

One SQLite file. A message is durable when `put` returns, and leaves only when it was
acknowledged, or when the file is full: then the oldest telemetry and drift go first, and
events last. What was given up is counted, and the count is reported; each message that is sent
says which sequence before it is still held, so that the server waits for no other.

A file that SQLite finds damaged is set aside as `<name>.damaged`, and a new one begins, with a
new stream id and an event that says so. A disk that refuses to write costs the message,
which is counted, and never the caller. One that does not even let the file be opened at the
start is stood in for by memory, until it does.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeVar

from edgewise_protocol.bounds import MAX_CONTROL_BYTES, MAX_DRIFT_BYTES
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.messages import AFTER_BYTES, Event, Streamed, decode, encode, with_after

from edgewise_agent.durable import sync_dir
from edgewise_agent.observe.errors import OutboxError, OversizeError

log = logging.getLogger(__name__)

Leaf = Literal["event", "telemetry", "drift"]
Make = Callable[[str, int, float], Streamed]
"""Makes the message of a (stream, sequence number, time in seconds since the epoch)."""
T = TypeVar("T")

_LIMITS: Final[dict[Leaf, int]] = {
    "event": MAX_CONTROL_BYTES - AFTER_BYTES,
    "telemetry": MAX_CONTROL_BYTES - AFTER_BYTES,
    "drift": MAX_DRIFT_BYTES - AFTER_BYTES,
}
_MAX_PENDING: Final = 1_000
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
_DISK: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})
"""What a full, broken or read-only disk makes of opening: a write-ahead log cannot be read without being written."""
_MEMORY: Final = ":memory:"
_MEMORY_BYTES: Final = 1 << 20
_REOPEN_S: Final = 30.0
"""How often the file is tried again while memory stands in for it."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS message (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, leaf TEXT NOT NULL, size INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS expendable ON message (seq) WHERE leaf != 'event';
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class OutboxItem(NamedTuple):
    """One message that waits for its acknowledgement. `payload` is what goes on the wire now, `after` in it."""

    seq: int
    leaf: Leaf
    payload: bytes


class Outbox:
    """A durable, bounded queue. Safe to use from any thread.

    Args:
        path: of the file; its folder must be there.
        max_bytes: sum of the payloads that are kept.

    Raises:
        OutboxError: the file can neither be opened nor set aside, and not for want of a disk that takes it.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._unsaved_drops = 0
        self._full_bytes: int | None = None
        """`max_bytes` of the file, while memory stands in for it."""
        self._retry_at = 0.0
        self._count: int = 0
        self._bytes: int = 0
        self.on_put: Callable[[], None] | None = None
        """Called after each `put`, in its thread, without a lock held."""
        self._db: sqlite3.Connection
        try:
            self._open()
        except sqlite3.Error as error:
            if _is_damage(error):
                self._begin_anew(error)
            elif _is_disk(error) and path.parent.is_dir():
                self._stand_in(error)
            else:
                raise OutboxError(f"the outbox {path.name} cannot be opened: {error}") from error

    @property
    def stream(self) -> str:
        """Random id of this file."""
        return self._stream

    @property
    def dropped(self) -> int:
        """Messages that were given up since the file's creation."""
        return self._dropped + self._unsaved_drops

    def __len__(self) -> int:
        """Messages that wait."""
        return self._count

    def put(self, leaf: Leaf, make: Make) -> None:
        """Make a message and keep it until it is acknowledged.

        One that breaks the contract of the wire is given up, and counted: the server could never take it.

        Raises:
            OversizeError: the message is longer than the wire takes.
        """
        with self._lock:
            self._leave_stand_in()
            try:
                self._guarded(lambda: self._insert(leaf, make))
            except (sqlite3.Error, ProtocolError) as error:
                self._unsaved_drops += 1
                log.error("the outbox lost a message of %s: %s", leaf, error)
                return
        if self.on_put is not None:
            self.on_put()

    def pending(self, after_seq: int, limit: int) -> list[OutboxItem]:
        """The oldest messages with a sequence number above `after_seq`, at most `limit` (1,000)."""

        def read() -> list[OutboxItem]:
            (held,) = self._db.execute(
                "SELECT COALESCE(MAX(seq), 0) FROM message WHERE seq <= ?", (after_seq,)
            ).fetchone()
            rows = self._db.execute(
                "SELECT seq, leaf, payload FROM message WHERE seq > ? ORDER BY seq LIMIT ?",
                (after_seq, max(0, min(limit, _MAX_PENDING))),
            )
            items = []
            for seq, leaf, payload in rows:
                items.append(OutboxItem(seq, leaf, with_after(payload, held)))
                held = seq
            return items

        with self._lock:
            try:
                return self._guarded(read)
            except sqlite3.Error as error:
                log.error("the outbox cannot be read: %s", error)
                return []

    def acknowledge(self, stream: str, through: int) -> None:
        """Delete what the server has stored: every message of `stream` up to `through`.

        An acknowledgement of another stream, that is of a file before this one, changes nothing.
        """

        def delete() -> None:
            upto = (min(through, 2**62),)
            with _transaction(self._db):
                count, size = self._db.execute(
                    "SELECT COUNT(*), COALESCE(SUM(size), 0) FROM message WHERE seq <= ?", upto
                ).fetchone()
                self._db.execute("DELETE FROM message WHERE seq <= ?", upto)
            self._count -= count
            self._bytes -= size

        with self._lock:
            if stream == self._stream:
                try:
                    self._guarded(delete)
                except sqlite3.Error as error:
                    log.error("the outbox cannot forget what was acknowledged: %s", error)

    def close(self) -> None:
        """Close the file. The outbox is of no use afterwards."""
        with self._lock:
            self._db.close()

    # ------------------------------------------------------------- inside

    def _open(self, place: Path | str | None = None) -> None:
        db = sqlite3.connect(place or self._path, isolation_level=None, check_same_thread=False, timeout=5.0)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA journal_size_limit = 1048576")
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise _damaged(str(verdict))
            db.executescript(_SCHEMA)
            db.execute("INSERT OR IGNORE INTO about VALUES ('stream', ?), ('dropped', '0')", (secrets.token_hex(8),))
            about = dict(db.execute("SELECT name, value FROM about").fetchall())
            stream, dropped = str(about["stream"]), int(about["dropped"])
            row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'message'").fetchone()
            count, size = db.execute("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM message").fetchone()
        except (ValueError, KeyError) as error:
            db.close()
            raise _damaged(str(error)) from error
        except sqlite3.Error:
            db.close()
            raise
        self._db, self._stream, self._dropped = db, stream, dropped
        self._last_seq, self._count, self._bytes = int(row[0]) if row else 0, count, size

    def _stand_in(self, cause: sqlite3.Error) -> None:
        """Keep messages in memory, under a stream of their own: a full disk must not keep the agent from its work."""
        log.error("the outbox %s cannot be opened (%s); messages are kept in memory", self._path.name, cause)
        self._full_bytes, self._max_bytes = self._max_bytes, min(self._max_bytes, _MEMORY_BYTES)
        self._retry_at = time.monotonic() + _REOPEN_S
        self._open(_MEMORY)

    def _leave_stand_in(self) -> None:
        """Go over to the file when it can be opened, and nothing in memory would be lost by it."""
        if self._full_bytes is None or self._count or time.monotonic() < self._retry_at:
            return
        self._retry_at = time.monotonic() + _REOPEN_S
        memory = self._db
        try:
            self._open()
        except sqlite3.Error as error:
            if not _is_damage(error):
                log.warning("the outbox %s cannot be opened yet: %s", self._path.name, error)
                return
            self._begin_anew(error)
        memory.close()
        self._max_bytes, self._full_bytes = self._full_bytes, None
        log.info("the outbox %s is in use again", self._path.name)

    def _begin_anew(self, cause: sqlite3.Error) -> None:
        """Set the damaged file aside, and say so in a new one."""
        log.error("the outbox %s is damaged (%s); it is set aside", self._path.name, cause)
        try:
            for suffix in ("", "-wal", "-shm"):
                part = self._path.with_name(self._path.name + suffix)
                if part.exists():
                    part.replace(self._path.with_name(f"{self._path.name}.damaged{suffix}"))
            sync_dir(self._path.parent)
            self._open()
        except (OSError, sqlite3.Error) as error:
            raise OutboxError(f"the damaged outbox {self._path.name} cannot be set aside: {error}") from error
        text = f"The outbox was damaged and was set aside; what it held is not sent: {cause}"[:1_000]
        self._insert(
            "event",
            lambda stream, seq, at: Event(
                stream=stream, seq=seq, at=at, kind="agent", code="outbox-damaged", text=text
            ),
        )

    def _guarded(self, work: Callable[[], T]) -> T:
        """Do `work`; if the file turns out to be damaged, begin a new one and do it there."""
        try:
            return work()
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise
            self._db.close()
            self._begin_anew(error)
            return work()

    def _insert(self, leaf: Leaf, make: Make) -> None:
        seq = self._last_seq + 1
        message = make(self._stream, seq, time.time())
        payload = encode(message)
        if len(payload) > _LIMITS[leaf]:
            raise OversizeError(f"a {leaf} message of {len(payload)} bytes; at most {_LIMITS[leaf]} are taken")
        decode(type(message), payload, _LIMITS[leaf])
        dropped = self._unsaved_drops
        with _transaction(self._db):
            self._db.execute("INSERT INTO message VALUES (?, ?, ?, ?)", (seq, leaf, len(payload), payload))
            evicted, freed = self._evict(self._bytes + len(payload) - self._max_bytes)
            dropped += evicted
            if dropped:
                self._db.execute("UPDATE about SET value = ? WHERE name = 'dropped'", (str(self._dropped + dropped),))
        self._last_seq = seq
        self._dropped += dropped
        self._unsaved_drops = 0
        self._count += 1 - evicted
        self._bytes += len(payload) - freed

    def _evict(self, excess: int) -> tuple[int, int]:
        """Delete messages until `excess` bytes are gone; how many messages and bytes went."""
        gone, freed = 0, 0
        while freed < excess:
            row = (
                self._db.execute("SELECT seq, size FROM message WHERE leaf != 'event' ORDER BY seq LIMIT 1").fetchone()
                or self._db.execute("SELECT seq, size FROM message ORDER BY seq LIMIT 1").fetchone()
            )
            if row is None:
                break
            self._db.execute("DELETE FROM message WHERE seq = ?", (row[0],))
            freed += int(row[1])
            gone += 1
        return gone, freed


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _damaged(text: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(text)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _is_disk(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DISK


def _is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE
