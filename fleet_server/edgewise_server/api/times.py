"""Times of part of the tables are seconds since the epoch, the unit of the wire; JSON answers give them in UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import overload


@overload
def at(seconds: float) -> datetime: ...
@overload
def at(seconds: None) -> None: ...
def at(seconds: float | None) -> datetime | None:
    """The aware UTC time; a device's absurd clock is cut to what a datetime can hold."""
    return None if seconds is None else datetime.fromtimestamp(min(max(seconds, 0.0), 4e9), UTC)
