"""Times as the server tells them (ISO 8601, UTC), for people to read; spans as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

import typer

_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


MIN_SPAN_S: Final = 60


def span(text: str | int) -> int:
    """Seconds of `90`, `90s`, `30m`, `2h` or `7d`; a number alone is seconds.

    Raises:
        typer.BadParameter: it is none of these, or less than a minute.
    """
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", str(text).strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no span of time: write 90s, 30m, 2h or 7d")
    seconds = int(found[1]) * _SECONDS[found[2]]
    if seconds < MIN_SPAN_S:
        raise typer.BadParameter(f"{text!r} is less than a minute")
    return seconds


def readable(text: str | None) -> str:
    """`2026-11-24 10:00:00`, in UTC; `never` for none, the text itself where it is no time."""
    if not text:
        return "never"
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    except ValueError:
        return text
