"""The schema of the database: all tables, and the migrations that make them.

Importing this module registers every table. `upgrade` is what `init` and `run` do.
"""

from __future__ import annotations

import threading
from importlib import import_module
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from sqlalchemy import MetaData
from sqlalchemy.exc import OperationalError

from edgewise_server.db import Database, translated
from edgewise_server.errors import SchemaNewerError
from edgewise_server.models.base import Table

TABLE_MODULES: Final = (
    "access",
    "assignments",
    "blobs",
    "devices",
    "federation",
    "jobs",
    "leases",
    "outgoing",
    "registry",
    "rollouts",
    "telemetry",
    "trust",
)
for _name in TABLE_MODULES:
    import_module(f"edgewise_server.models.{_name}")

METADATA: Final[MetaData] = Table.metadata
_ONE_AT_A_TIME: Final = threading.Lock()
"""Alembic keeps its context in the process."""


def migration_config(database: Database) -> Config:
    """Alembic's configuration; it needs no ini file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["engine"] = database.engine
    return config


def upgrade(database: Database) -> None:
    """Bring the database to the newest revision; safe to repeat, and to run in several processes at once.

    Raises:
        SchemaNewerError: the database is of a revision that this server does not know.
        BusyError, StorageFullError, DatabaseUnavailableError: the database itself fails.
    """
    with _ONE_AT_A_TIME:
        try:
            command.upgrade(migration_config(database), "head")
        except CommandError as error:
            if not isinstance(error.__cause__, ResolutionError):
                raise
            raise SchemaNewerError(
                "a newer server has used the database, and this one does not know its schema: install that version "
                "again, or restore the backup from before its update (`edgewise-server restore`)"
            ) from error
        except OperationalError as error:
            raise translated(error) from error
