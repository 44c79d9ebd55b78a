"""Tables of scores, one a machine: CSV of name, score and, where names do not tell, label.

The form is that of MLPerf Tiny's anomaly detection, which judges by the mean of the AUC of each machine.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import MetricError, ScoresError
from edgewise_converter.metrics.ranks import auc

MAX_BYTES: Final = 64 << 20
MAX_ROWS: Final = 1_000_000
MAX_FILES: Final = 1_000
_WORDS: Final = {"normal": 0, "anomaly": 1}
_LABELS: Final = {**_WORDS, "0": 0, "1": 1}
_MAX_FIELD: Final = 200
_MAX_ROW: Final = 1 << 16
"""Characters."""


class Scores(NamedTuple):
    """One table."""

    scores: NDArray[np.float64]
    """Shape (N,), larger is more anomalous; NaN and infinity are kept, and counted as wrong."""
    y: NDArray[np.int64]
    """Shape (N,), 1 for an anomaly."""


class FileAuc(msgspec.Struct, frozen=True, kw_only=True):
    """The AUC of one table."""

    file: str
    auc: float
    samples: int
    anomalies: int


class ScoresAuc(msgspec.Struct, frozen=True, kw_only=True):
    """The AUC of several tables."""

    value: float
    """The mean over tables, each with the same weight."""
    files: tuple[FileAuc, ...]


def judge_files(paths: Sequence[Path], label_column: str | None = None) -> ScoresAuc:
    """AUC of each table, and their mean.

    Args:
        paths: at least one, each another.
        label_column: the heading or the number (from 1) of the column with labels; without, a third column, or else
            the names' beginnings, `anomaly_` and `normal_`.

    Raises:
        ScoresError: a file cannot be read, or is no such table.
        MetricError: a table holds one class alone.
    """
    if not 1 <= len(paths) <= MAX_FILES or len(set(paths)) != len(paths):
        raise ScoresError(f"between 1 and {MAX_FILES} different files of scores are needed; {len(paths)} were given")
    found = []
    for path in paths:
        table = parse(_read(path), path.name, label_column)
        try:
            value = auc(table.scores, table.y)
        except MetricError as error:
            raise MetricError(f"{path.name}: {error}") from error
        found.append(FileAuc(file=path.name, auc=value, samples=len(table.y), anomalies=int(table.y.sum())))
    return ScoresAuc(value=float(np.mean([f.auc for f in found])), files=tuple(found))


def parse(text: str, source: str, label_column: str | None = None) -> Scores:
    """Scores and labels of a table. Pure.

    Args:
        text: CSV; a first line whose second field is no number is a heading.
        source: what messages call it.
        label_column: see `judge_files`.

    Raises:
        ScoresError: it is no such table; the message names the line.
    """
    scores, labels, column, first = array("d"), array("b"), None, True
    for line, row in _rows(text, source):
        value = _number(row[1]) if len(row) > 1 else None
        if first:
            first, heading = False, row if len(row) > 1 and value is None else None
            column = _column(label_column, heading, source)
            if heading is not None:
                continue
        if value is None:
            raise ScoresError(f"{source}, line {line}: name,score is expected, and the score is a number")
        if len(scores) == MAX_ROWS:
            raise ScoresError(f"{source} holds more than {MAX_ROWS} scores")
        scores.append(value)
        labels.append(_label(row, column, f"{source}, line {line}"))
    if not scores:
        raise ScoresError(f"{source} holds no scores")
    return Scores(np.array(scores, np.float64), np.array(labels, np.int64))


def _rows(text: str, source: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and rows, one at a time: a file of many short rows would take hundreds of times its size."""
    at = begun = 0

    def lines() -> Iterator[str]:
        nonlocal at
        while at < len(text):
            end = text.find("\n", at) + 1 or len(text)
            if end - begun > _MAX_ROW:
                raise ScoresError(f"{source} holds a row of more than {_MAX_ROW} characters: it is no table of scores")
            line, at = text[at:end], end
            yield line

    reader = csv.reader(lines(), strict=True)
    try:
        for row in reader:
            begun = at
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise ScoresError(f"{source} is not CSV: {error}") from error


def _column(wanted: str | None, heading: Sequence[str] | None, source: str) -> int | None:
    """The index of the column with labels; None to look at a third column, then at names."""
    if wanted is None:
        return None
    if heading is not None and wanted in heading:
        return list(heading).index(wanted)
    if wanted.isascii() and wanted.isdigit() and 1 <= int(wanted[:6]) <= _MAX_FIELD:
        return int(wanted) - 1
    known = ", ".join(heading) if heading else "no heading"
    raise ScoresError(f"{source} has no column {wanted[:40]!r} (it has {known[:200]}); a column's number works too")


def _label(row: Sequence[str], column: int | None, where: str) -> int:
    if column is None and len(row) < 3:
        prefix = row[0].strip().rpartition("/")[2].partition("_")[0].lower()
        if prefix in _WORDS:
            return _WORDS[prefix]
        raise ScoresError(
            f"{where}: the name {row[0][:60]!r} begins with neither 'anomaly_' nor 'normal_'; give the labels in a "
            "third column, or name their column with --label-column"
        )
    at = 2 if column is None else column
    text = row[at].strip().lower() if at < len(row) else ""
    if text not in _LABELS:
        raise ScoresError(f"{where}: the label is {text[:40]!r}; 0 or normal, 1 or anomaly is expected")
    return _LABELS[text]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ScoresError(f"{path.name} has more than {MAX_BYTES >> 20} MiB: it is no table of scores")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ScoresError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ScoresError(f"{path.name} is not text in UTF-8: {error}") from error
