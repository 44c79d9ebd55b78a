"""Starts the real server as a forked child that kills itself, by SIGKILL, right before or after a chosen step.

A step is the commit of a transaction that has changed something, or a publication or acknowledgement to the broker;
they are counted from the transaction on that makes a rollout. Nothing of this is in the server: the hooks are put
around SQLAlchemy's commit and around the bridge's connection here. The imports are done once, so that a start is fast.

Reads one JSON document a line: `{"args", "env", "log", "steps", "kill": [number, "before" | "after"] | null}`;
answers `pid N`, then `ended STATUS`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from edgewise_server.__main__ import main
from edgewise_server.bridge.connection import Connection
from sqlalchemy import event
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import Engine

CHANGING = ("INSERT", "UPDATE", "DELETE")
BEGINNING = "INSERT INTO rollouts "
PR_SET_PDEATHSIG = 1


class Steps:
    """Counts steps, and dies at the chosen one."""

    def __init__(self, log: str, kill: tuple[int, str] | None) -> None:
        self._log, self._kill = log, kill
        self._lock = threading.Lock()
        self._number = 0
        self.counting = False

    def around(self, name: str, act: Callable[[], Any]) -> Any:
        if not self.counting:
            return act()
        with self._lock:
            self._number += 1
            number = self._number
            with open(self._log, "a") as log:
                log.write(f"{number} {name} in {threading.current_thread().name}\n")
        self._die_at(number, "before")
        result = act()
        self._die_at(number, "after")
        return result

    def _die_at(self, number: int, side: str) -> None:
        if self._kill == (number, side):
            os.kill(os.getpid(), signal.SIGKILL)


def install(steps: Steps) -> None:
    """Put the hooks in."""
    dirty: set[int] = set()

    def changed(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().startswith(CHANGING) and cursor.rowcount != 0:
            dirty.add(id(connection.connection.dbapi_connection))
            if statement.startswith(BEGINNING):
                steps.counting = True

    event.listen(Engine, "after_cursor_execute", changed)
    for dialect in (SQLiteDialect_pysqlite, PGDialect_psycopg):
        _wrap_dialect(dialect, steps, dirty)
    for name in ("publish", "acknowledge"):
        _wrap_connection(name, steps)


def _wrap_dialect(dialect: Any, steps: Steps, dirty: set[int]) -> None:
    commit, rollback = dialect.do_commit, dialect.do_rollback

    def do_commit(self: Any, connection: Any) -> None:
        key = id(connection.dbapi_connection)
        if key in dirty:
            dirty.discard(key)
            steps.around("commit", lambda: commit(self, connection))
        else:
            commit(self, connection)

    def do_rollback(self: Any, connection: Any) -> None:
        dirty.discard(id(getattr(connection, "dbapi_connection", connection)))
        rollback(self, connection)

    dialect.do_commit, dialect.do_rollback = do_commit, do_rollback


def _wrap_connection(name: str, steps: Steps) -> None:
    original = getattr(Connection, name)

    def wrapped(self: Any, packets: Any, *rest: Any) -> Any:
        if not packets:
            return original(self, packets, *rest)
        return steps.around(name, lambda: original(self, packets, *rest))

    setattr(Connection, name, wrapped)


def serve(order: dict[str, Any]) -> int:
    """The child: becomes the server."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.clear()
    os.environ.update(order["env"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(source, target)
    install(Steps(order["steps"], tuple(order["kill"]) if order["kill"] else None))
    return main(order["args"])


def run() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 70
            try:
                status = serve(json.loads(line))
            finally:
                os._exit(status)
        print(f"pid {child}", flush=True)
        _, ended = os.waitpid(child, 0)
        print(f"ended {os.waitstatus_to_exitcode(ended)}", flush=True)


if __name__ == "__main__":
    run()
