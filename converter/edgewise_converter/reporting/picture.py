"""A search's chart as PNG: size against latency, the front, the winner, and every candidate by number."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

from edgewise_converter.errors import MissingExtraError
from edgewise_converter.files import write_atomically
from edgewise_converter.reporting import chart, colours, words
from edgewise_converter.reporting.chart import Point
from edgewise_converter.search.result import SearchResult

_DPI: Final = 130
_KEY_ROWS: Final = 40
"""Candidates that the key beside the chart lists; more stand in the page."""


def write_png(result: SearchResult, path: Path) -> None:
    """Write the picture; raises `WriteError`, `MissingExtraError`."""
    data = png(result)
    write_atomically(path, lambda out: out.write(data))


def png(result: SearchResult) -> bytes:
    """The picture. Equal results give equal bytes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = min(len(result.rows), _KEY_ROWS)
    figure = figure_of(12.6, max(5.4, 1.5 + 0.235 * rows))
    grid = figure.add_gridspec(
        1, 3, width_ratios=(1.0, 0.1, 0.8), left=0.07, right=0.99, top=0.85, bottom=0.1, wspace=0.02
    )
    main, strip, key = (figure.add_subplot(grid[0, i]) for i in range(3))
    found = chart.points(result)
    _axes(main, strip, found)
    _dots(main, strip, result, found)
    _key(key, result)
    _titles(figure, result)
    _scale(figure, main, result)
    return to_png(figure)


def figure_of(width: float, height: float) -> Any:
    """An empty figure, inches; neither a display nor matplotlib's global state is touched."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "plots need matplotlib: install the extra with  pip install 'edgewise-converter[search]'"
        ) from error
    return Figure(figsize=(width, height), dpi=_DPI)


def to_png(figure: Any) -> bytes:
    """The figure's bytes, without a date or a version in them."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def literal(text: str) -> str:
    """Text that matplotlib sets as it is: a dollar would begin mathematics."""
    return words.plain(text).replace("$", r"\$")


def _axes(main: Any, strip: Any, found: tuple[Point, ...]) -> None:
    x = chart.axis([p.latency_ms for p in found if p.latency_ms])
    y = chart.axis([p.size_kib for p in found])
    for axes in (main, strip):
        axes.set_yscale("log" if y.log else "linear")
        axes.set_ylim(y.low, y.high)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#e6e8eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8.5, color="#8a9099")
        for spine in axes.spines.values():
            spine.set_color("#b8bdc4")
    main.set_xscale("log" if x.log else "linear")
    main.set_xlim(x.low, x.high)
    for setter, ticks in ((main.set_xticks, x.ticks()), (main.set_yticks, y.ticks())):
        setter(ticks, [f"{tick:.4g}" for tick in ticks])
    main.minorticks_off()
    main.set_xlabel("median latency of one request on one thread, ms", fontsize=9)
    main.set_ylabel("model file, KiB", fontsize=9)
    strip.minorticks_off()
    strip.set_facecolor("#f6f7f8")
    strip.set_xlim(-1, 1)
    strip.set_xticks([0], ["not timed"], fontsize=8)
    strip.set_yticks(y.ticks(), [])
    strip.tick_params(length=0)


def _dots(main: Any, strip: Any, result: SearchResult, found: tuple[Point, ...]) -> None:
    line = chart.front(found)
    if len(line) > 1:
        main.plot(
            [p.latency_ms for p in line],
            [p.size_kib for p in line],
            color="#3c4450",
            linewidth=1.3,
            linestyle=(0, (4, 2)),
            zorder=2,
        )
    for p in found:
        axes, x = (main, p.latency_ms) if p.latency_ms else (strip, 0.0)
        lost = chart.share(p.row, result.accuracy_drop)
        style: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 8.5, "zorder": 3}
        if p.row.verdict == "rejected" or lost is None:
            style |= {"markerfacecolor": "white", "markeredgecolor": colours.REJECTED, "markeredgewidth": 1.3}
        else:
            style |= {"markerfacecolor": colours.of_loss(lost), "markeredgecolor": "white", "markeredgewidth": 0.8}
        axes.plot([x], [p.size_kib], **style)
        if p.row.verdict == "winner":
            axes.plot(
                [x],
                [p.size_kib],
                linestyle="none",
                marker="o",
                markersize=15,
                markerfacecolor="none",
                markeredgecolor="#16191d",
                markeredgewidth=1.6,
                zorder=4,
            )
    for axes, mine in ((main, [p for p in found if p.latency_ms]), (strip, [p for p in found if not p.latency_ms])):
        _labels(axes, result, mine, line if axes is main else [])


def _labels(axes: Any, result: SearchResult, mine: list[Point], line: list[Point]) -> None:
    texts = [_label(result, p) for p in mine]
    # Points of 1/72 inch; their origin is below, and the placing does not mind which way is up.
    pixel = _DPI / 72

    def spot(ms: float | None, kib: float) -> tuple[float, float]:
        x, y = axes.transData.transform((ms or 0.0, kib))
        return float(x) / pixel, float(y) / pixel

    anchors = [spot(p.latency_ms, p.size_kib) for p in mine]
    sizes = [(5.0 * len(text) + 3, 10.0) for text in texts]
    box = axes.get_window_extent()
    area = (box.x0 / pixel, box.y0 / pixel, box.x1 / pixel, box.y1 / pixel)
    corners = [spot(p.latency_ms, p.size_kib) for p in line]
    places = chart.place(anchors, sizes, area, corners, [p.row.verdict == "winner" for p in mine])
    for p, text, anchor, (x, y), size in zip(mine, texts, anchors, places, sizes, strict=True):
        at = axes.transData.inverted().transform((x * pixel, y * pixel))
        strong = p.row.verdict == "winner"
        grey = p.row.verdict == "rejected"
        if chart.far(anchor, (x, y), size):
            axes.plot([p.latency_ms or 0.0, at[0]], [p.size_kib, at[1]], color="#b8bdc4", linewidth=0.6, zorder=2)
        axes.text(
            at[0],
            at[1],
            text,
            ha="center",
            va="center",
            fontsize=8,
            fontweight="bold" if strong else "normal",
            color=colours.REJECTED if grey else "#16191d",
            zorder=5,
        )


def _label(result: SearchResult, p: Point) -> str:
    if p.row.verdict == "winner":
        return f"{p.number} winner" + (" (float)" if p.row.candidate.name == result.baseline else "")
    return f"{p.number} float" if p.row.candidate.name == result.baseline else str(p.number)


def _key(axes: Any, result: SearchResult) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(max(len(result.rows[:_KEY_ROWS]), 14) + 0.5, -0.5)
    for i, row in enumerate(result.rows[:_KEY_ROWS]):
        grey = row.verdict == "rejected"
        colour = colours.REJECTED if grey else "#16191d"
        weight = "bold" if row.verdict == "winner" else "normal"
        axes.text(0.08, i, str(i + 1), fontsize=8, ha="right", va="center", color=colour, fontweight=weight)
        name = literal(words.shortened(row.candidate.name, 46))
        axes.text(0.1, i, name, fontsize=8, va="center", color=colour, fontweight=weight)
        told = words.short(row) if grey else words.lost(row.score)
        axes.text(0.99, i, literal(told), fontsize=8, ha="right", va="center", color=colour, fontweight=weight)
    if len(result.rows) > _KEY_ROWS:
        axes.text(0.1, _KEY_ROWS, f"and {len(result.rows) - _KEY_ROWS} more, see the page", fontsize=8, va="center")
    axes.text(0.99, -1.1, "points, or why rejected", fontsize=7.5, ha="right", va="center", color="#5b626b")


def _titles(figure: Any, result: SearchResult) -> None:
    figure.text(
        0.02,
        0.955,
        literal(
            f"{words.shortened(result.model, 40)} for {words.shortened(result.profile, 40)}: "
            f"{len(result.rows)} forms, smallest and fastest within {words.points(result.accuracy_drop)}"
        ),
        fontsize=12,
        fontweight="bold",
        va="center",
        color="#16191d",
    )
    figure.text(
        0.02,
        0.91,
        literal(
            f"latency measured on {words.shortened(result.measured_on, 100)}; {result.metric} on "
            f"{result.samples} samples; dashed: the front; grey: rejected"
        ),
        fontsize=8.5,
        va="center",
        color="#5b626b",
    )


def _scale(figure: Any, main: Any, result: SearchResult) -> None:
    """The legend of colours, above the chart's right end."""
    box = main.get_position()
    width, height = 0.15, 0.014
    axes = figure.add_axes((box.x1 - width, box.y1 + 0.018, width, height))
    ramp = [[tuple(int(colours.of_loss(i / 99)[at : at + 2], 16) for at in (1, 3, 5)) for i in range(100)]]
    axes.imshow(ramp, aspect="auto", extent=(0, 1, 0, 1))
    axes.set_xlim(0, 1)
    axes.set_yticks([])
    axes.set_xticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.text(-0.03, 0.5, "no loss", fontsize=7.5, ha="right", va="center", color="#5b626b")
    axes.text(1.03, 0.5, words.points(result.accuracy_drop), fontsize=7.5, ha="left", va="center", color="#5b626b")
