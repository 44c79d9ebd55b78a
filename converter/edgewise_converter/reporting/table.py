"""A search's result as rows of text; the command line draws them. Pure."""

from __future__ import annotations

from typing import Final

from edgewise_converter.reporting import words
from edgewise_converter.search.result import Row, SearchResult

_REASON_CHARS: Final = 160


def table(result: SearchResult) -> tuple[list[str], list[list[str]]]:
    """Columns, and one row a candidate in the result's order: the winner first."""
    labelled = next((row.score.labelled for row in result.rows if row.score is not None), False)
    columns = [
        "candidate",
        "engine",
        "size",
        result.metric if labelled else f"{result.metric} (no labels)",
        "points to float",
        "latency",
        "to float",
        "verdict",
        "why",
    ]
    return columns, [_row(result, row) for row in result.rows]


def front(result: SearchResult) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the winner, of what no other form beats, and of float, to hold them against."""
    columns, rows = table(result)
    kept = [
        row
        for found, row in zip(result.rows, rows, strict=True)
        if found.verdict in ("winner", "pareto") or found is result.float_row
    ]
    return columns[:-1], [row[:-1] for row in kept]


def others(result: SearchResult) -> list[tuple[str, list[str]]]:
    """Why the forms that are not in `front` were not taken, with their names; those of one reason together."""
    found: dict[str, list[str]] = {}
    for row in result.rows:
        if row.verdict in ("winner", "pareto") or row is result.float_row:
            continue
        beaten = row.verdict == "dominated"
        why = "beaten in size, latency and loss at once" if beaten else words.plain(row.reason, _REASON_CHARS)
        found.setdefault(why, []).append(words.plain(row.candidate.name))
    return list(found.items())


def _row(result: SearchResult, row: Row) -> list[str]:
    baseline = result.float_row
    return [
        words.plain(row.candidate.name),
        row.candidate.engine,
        words.size(row.size_bytes),
        words.metric(result.metric, row.score.value if row.score else None),
        words.lost(row.score),
        words.latency(row.latency_ms),
        against_float(baseline, row),
        words.VERDICTS[row.verdict],
        words.plain(row.reason, _REASON_CHARS),
    ]


def against_float(baseline: Row | None, row: Row) -> str:
    """How much smaller and faster than float a form is."""
    if baseline is None or row.candidate.name == baseline.candidate.name:
        return "-"
    parts = [
        words.ratio(baseline.size_bytes, row.size_bytes, "smaller", "larger"),
        words.ratio(baseline.latency_ms, row.latency_ms, "faster", "slower"),
    ]
    return ", ".join(part for part in parts if part) or "-"
