"""The table as text and Markdown, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from conversion.contender import Measured
from conversion.verdict import BUDGET, Verdict

COLUMNS: Final = ("model", "file", "KiB", "accuracy or agreement", "points", "median ms", "spread", "")
SUMMARY: Final = (
    "model",
    "objective",
    "judged by",
    "float source",
    "best other within the budget",
    "Edgewise",
    "points",
    "verdict",
)
_TICKS: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20)
_COLOURS: Final = {"float": "#8c8c8c", "peer": "#e0883a", "edgewise": "#2f6db3"}


def rows(case: str, basis: str, found: Sequence[Measured]) -> list[tuple[str, ...]]:
    """Lines of the table."""
    lines: list[tuple[str, ...]] = []
    for m in found:
        told = m.failure or m.contender.detail
        if m.value is None or m.latency_ms is None:
            size = f"{m.size_bytes / 1024:.1f}" if m.size_bytes else "-"
            lines.append((case, m.contender.label, size, "-", "-", "-", "-", told))
            continue
        if m.drop > BUDGET:
            told = f"over the budget{'; ' + told if told else ''}"
        lines.append(
            (
                case,
                m.contender.label,
                f"{m.size_bytes / 1024:.1f}",
                f"{100 * m.value:.2f} % {basis}",
                _points(m),
                f"{m.latency_ms:.4f}",
                f"{100 * m.spread:.1f} %",
                told,
            )
        )
    return lines


def summary(case: str, basis: str, found: Sequence[Measured], verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """A line for each objective: float, the best other file within the budget, Edgewise's winner."""
    by_label = {m.contender.label: m for m in found}
    floats = [m for m in found if m.contender.who == "float" and m.latency_ms]
    base = min(floats, key=lambda m: m.latency_ms or 0.0)
    lines: list[tuple[str, ...]] = []
    for v in verdicts:
        ours, best = by_label[f"Edgewise ({v.aim})"], by_label.get(v.best)
        points = "-" if ours.value is None else _points(ours)
        line = (case, v.aim, basis, _figures(base), f"{v.best or '-'}: {_figures(best)}")
        ended = "held" if v.held else "**lost**"
        lines.append((*line, f"{ours.contender.detail or ours.failure}: {_figures(ours)}", points, ended))
    return lines


def _points(m: Measured) -> str:
    return f"{round(-m.drop, 2) + 0.0:+.2f}"


def _figures(m: Measured | None) -> str:
    if m is None or m.latency_ms is None:
        return "-"
    return f"{m.size_bytes / 1024:.1f} KiB, {m.latency_ms:.4f} ms"


def text(lines: Sequence[Sequence[str]]) -> str:
    """Aligned columns."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[-1]]) for line in lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table for the documentation."""
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rest))


def draw(found: Mapping[str, Sequence[Measured]], verdicts: Sequence[Verdict], title: str, path: Path) -> None:
    """A panel a model: latency to the right, size upwards, both over those of the float source, logarithmic.

    Hollow marks are files that are over the accuracy budget; the down-left corner is best.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

    columns = min(4, len(found))
    down = -(-len(found) // columns)
    figure, axes = pyplot.subplots(down, columns, figsize=(4.6 * columns, 3.9 * down + 0.8), squeeze=False)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    for axis, (case, measured) in zip(axes.flat, found.items(), strict=False):
        base = next(m for m in measured if m.contender.who == "float" and m.latency_ms)
        for place, m in enumerate(measured):
            if m.latency_ms is None or not base.latency_ms:
                continue
            x, y = m.latency_ms / base.latency_ms, m.size_bytes / base.size_bytes
            colour = _COLOURS[m.contender.who]
            marker = {"float": "s", "peer": "o", "edgewise": "*"}[m.contender.who]
            inside = m.drop <= BUDGET
            axis.scatter(
                x,
                y,
                s=160 if marker == "*" else 45,
                marker=marker,
                facecolors=colour if inside else "none",
                edgecolors=colour,
                zorder=3,
            )
            up = 5 if place % 2 else -10
            axis.annotate(m.contender.label, (x, y), (4, up), textcoords="offset points", fontsize=6.5, color="#333333")
        held = [v for v in verdicts if v.case == case]
        told = ", ".join(f"{v.aim} {'held' if v.held else 'LOST'}" for v in held)
        axis.set_title(f"{case}\n{told}", fontsize=8)
        axis.set_xscale("log")
        axis.set_yscale("log")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(FixedLocator(_TICKS))
            side.set_major_formatter(ScalarFormatter())
            side.set_minor_formatter(NullFormatter())
        axis.margins(0.25)
        axis.grid(True, alpha=0.3)
        axis.axvline(1, color="#bbbbbb", lw=0.8)
        axis.axhline(1, color="#bbbbbb", lw=0.8)
        axis.set_xlabel("latency / float source", fontsize=8)
        axis.set_ylabel("size / float source", fontsize=8)
        axis.tick_params(labelsize=7)
    figure.suptitle(f"{title}\nfilled: within {BUDGET} points of float; hollow: over the budget", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
