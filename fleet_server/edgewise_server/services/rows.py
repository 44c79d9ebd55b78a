"""Writes many rows with one statement, straight by the driver: a batch of telemetry has thousands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlmodel import Session


def write_rows(session: Session, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Execute `statement` for each row in the session's transaction.

    Args:
        statement: SQL that SQLite and PostgreSQL both know, with a `?` for each value, and no other.
    """
    if not rows:
        return
    connection = session.connection()
    if connection.dialect.paramstyle != "qmark":
        statement = statement.replace("?", "%s")
    connection.exec_driver_sql(statement, list(rows))
