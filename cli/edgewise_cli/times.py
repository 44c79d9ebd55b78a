"""Times as the server tells them (ISO 8601, UTC), for people to read."""

from __future__ import annotations

from datetime import UTC, datetime


def readable(text: str | None) -> str:
    """`2026-11-24 10:00:00`, in UTC; `never` for none, the text itself where it is no time."""
    if not text:
        return "never"
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    except ValueError:
        return text
