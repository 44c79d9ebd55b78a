"""Tables as JSON lines, one array a row: the same on SQLite and PostgreSQL, so that one can be restored to the other.

How a value is written depends on its column's kind alone, which the manifest names: a dump of an older schema can
be loaded without the models of that time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final

import msgspec
from sqlalchemy import Column as SqlColumn
from sqlalchemy import Connection, Float, LargeBinary, Table, column, func, insert, inspect, select, table, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.types import TypeEngine

from edgewise_server.backup.archive import Column, ColumnKind, TableEntry
from edgewise_server.backup.errors import ArchiveError, RestoreError
from edgewise_server.models.base import JsonValue, UtcDateTime

BATCH_ROWS: Final = 500
MAX_ROW_BYTES: Final = 64 << 20

_TYPES: Final[dict[ColumnKind, TypeEngine[Any] | None]] = {
    "plain": None,
    "float": Float(),
    "time": UtcDateTime(),
    "bytes": LargeBinary(),
    "json": JsonValue(),
}


def kind_of(found: SqlColumn[Any]) -> ColumnKind:
    """How a column's values are written."""
    if isinstance(found.type, UtcDateTime):
        return "time"
    if isinstance(found.type, JsonValue):
        return "json"
    if isinstance(found.type, LargeBinary):
        return "bytes"
    return "float" if isinstance(found.type, Float) else "plain"


def dump(connection: Connection, source: Table, out: BinaryIO) -> TableEntry:
    """Write a table's rows in the order of its primary key."""
    columns = tuple(Column(str(found.name), kind_of(found)) for found in source.columns)
    statement = select(source).order_by(*source.primary_key.columns)
    rows = 0
    with connection.execution_options(yield_per=BATCH_ROWS).execute(statement) as found:
        for row in found:
            values = [_written(value) for value in row]
            out.write(msgspec.json.encode(values) + b"\n")
            rows += 1
    return TableEntry(str(source.name), columns, rows)


def load(connection: Connection, entry: TableEntry, pieces: Iterable[bytes]) -> None:
    """Insert a table's rows.

    Raises:
        ArchiveError: the dump is not what its entry says.
        RestoreError: the database refuses a row.
    """
    present = {found["name"] for found in inspect(connection).get_columns(entry.name)}
    unknown = [found.name for found in entry.columns if found.name not in present]
    if unknown:
        raise ArchiveError(f"the table {entry.name} has no column {unknown[0][:64]!r}: the archive was changed")
    target = table(entry.name, *(column(found.name, _TYPES[found.kind]) for found in entry.columns))
    readers = [(found.name, _READERS[found.kind]) for found in entry.columns]
    batch: list[dict[str, Any]] = []
    rows = 0
    for line in _lines(pieces):
        values = msgspec.json.decode(line)
        if not isinstance(values, list) or len(values) != len(readers):
            raise ArchiveError(f"a row of the table {entry.name} has not {len(readers)} values")
        batch.append({name: read(value) for (name, read), value in zip(readers, values, strict=True)})
        rows += 1
        if len(batch) == BATCH_ROWS:
            _insert(connection, target, batch)
    _insert(connection, target, batch)
    if rows != entry.rows:
        raise ArchiveError(f"the table {entry.name} has {rows} rows, and {entry.rows} were announced")


def continue_sequences(connection: Connection, tables: Iterable[Table]) -> None:
    """On PostgreSQL: have the next numbers follow those that were loaded. SQLite looks at the rows itself."""
    if connection.dialect.name != "postgresql":
        return
    for source in tables:
        key = source.autoincrement_column
        if key is None:
            continue
        sequence = connection.execute(
            text("SELECT pg_get_serial_sequence(:table, :column)"), {"table": source.name, "column": key.name}
        ).scalar()
        highest = connection.execute(select(func.max(key))).scalar()
        if sequence is not None and highest is not None:
            connection.execute(text("SELECT setval(:sequence, :value)"), {"sequence": sequence, "value": highest})


def _insert(connection: Connection, target: Any, batch: list[dict[str, Any]]) -> None:
    if not batch:
        return
    try:
        connection.execute(insert(target), batch)
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", error)).splitlines()[0][:300]
        raise RestoreError(f"the database refuses a row of {target.name}: {cause}") from error
    batch.clear()


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > MAX_ROW_BYTES:
            raise ArchiveError(f"a row of the archive has more than {MAX_ROW_BYTES} bytes")
        yield from whole
    if rest:
        raise ArchiveError("a table ends in the middle of a row")


def _written(value: Any) -> Any:
    # JSON has no number for what a device may call infinite
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _time(value: Any) -> datetime | None:
    return None if value is None else msgspec.convert(value, datetime).astimezone(UTC)


def _bytes(value: Any) -> bytes | None:
    return None if value is None else msgspec.convert(value, bytes)


_READERS: Final[dict[ColumnKind, Callable[[Any], Any]]] = {
    "plain": lambda value: value,
    "float": _number,
    "time": _time,
    "bytes": _bytes,
    "json": lambda value: value,
}
