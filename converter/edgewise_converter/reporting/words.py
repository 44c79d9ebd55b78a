"""Figures and foreign text as reports show them. Pure."""

from __future__ import annotations

import unicodedata
from typing import Final

from edgewise_converter.metrics.score import Score
from edgewise_converter.search.result import Row

VERDICTS: Final = {
    "winner": "winner",
    "pareto": "on the front",
    "dominated": "dominated",
    "rejected": "rejected",
}
_KIB: Final = 1024
_CODE_CHARS: Final = 16
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that a reader does not see, or that turn text around."""


def plain(text: str, limit: int = 500) -> str:
    """Foreign text on one line: control, formatting and unpaired characters become U+FFFD, and it is bounded."""
    shown = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in _HIDDEN else c for c in " ".join(text[:limit].split())
    )
    return shown + ("…" if len(text) > limit else "")


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters, the middle left out: names of layers and forms differ at their ends."""
    text = plain(text)
    if len(text) <= limit:
        return text
    tail = limit // 2
    return text[: limit - tail - 1] + "…" + text[-tail:]


def size(bytes_: int | None) -> str:
    """A file's size."""
    if bytes_ is None:
        return "-"
    kib = bytes_ / _KIB
    return f"{kib:.1f} KiB" if kib < _KIB else f"{kib / _KIB:.2f} MiB"


def latency(ms: float | None) -> str:
    """A latency, three digits."""
    if ms is None:
        return "-"
    return f"{ms:.3f} ms" if ms < 10 else f"{ms:.1f} ms"


def metric(name: str, value: float | None) -> str:
    """A metric's value: AUC as a share, all else in per cent."""
    if value is None:
        return "-"
    return f"{value:.4f}" if name.startswith("auc") else f"{100 * value:.2f} %"


def lost(score: Score | None) -> str:
    """What a form lost to its source, in points; a gain has a plus."""
    if score is None:
        return "-"
    told = f"{0.0 - score.drop:+.2f}"
    return "0.00" if told in ("+0.00", "-0.00") else told


def points(count: float) -> str:
    """A number of percentage points."""
    return "1 point" if count == 1 else f"{count:g} points"


def ratio(than: float | None, this: float | None, less: str, more: str) -> str:
    """How many times less or more `this` is than `than`; empty where one is not known, or they are alike."""
    if not than or not this:
        return ""
    times = than / this
    word = less if times >= 1 else more
    shown = f"{max(times, 1 / times):.2f}"
    return "" if shown == "1.00" else f"{shown} x {word}"


def error(value: float) -> str:
    """A relative error; infinite ones by name."""
    return f"{value:.2e}" if value < 1e100 else "not finite"


def short(row: Row) -> str:
    """The reason of a rejection in a word or two."""
    if row.verdict != "rejected":
        return ""
    return shortened(row.short or row.reason.partition(":")[0], _CODE_CHARS)
