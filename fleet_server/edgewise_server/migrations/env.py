"""Alembic's environment: runs revisions on the engine that `edgewise_server.schema` hands over.

The whole upgrade is one transaction under one lock, so that several processes may start at once.
"""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from sqlmodel import AutoString, Session

from edgewise_server.db import hold_lock
from edgewise_server.models.base import JsonValue, UtcDateTime
from edgewise_server.schema import METADATA


def render_item(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """How our column types are written in a revision."""
    if kind == "type":
        if isinstance(item, UtcDateTime | JsonValue):
            return f"base.{type(item).__name__}()"
        if isinstance(item, AutoString):
            return f"sa.String(length={item.length})" if item.length else "sa.String()"
    return False


with context.config.attributes["engine"].begin() as connection:
    hold_lock(Session(connection), "migrations")
    context.configure(
        connection=connection,
        target_metadata=METADATA,
        compare_type=True,
        transactional_ddl=True,
        render_item=render_item,
    )
    context.run_migrations()
