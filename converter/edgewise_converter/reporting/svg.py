"""Charts of the page as inline SVG, coloured by the page's own style sheet. Pure; every foreign text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from edgewise_converter.reporting import chart, colours, words
from edgewise_converter.reporting.chart import Point
from edgewise_converter.reporting.details import LayerDamage
from edgewise_converter.search.result import SearchResult

MAX_LAYERS: Final = 60
_WIDTH, _HEIGHT = 860, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 96, 16, 52
_STRIP: Final = 62
"""Width of the strip at the right for what was not timed."""


def scatter(result: SearchResult) -> str:
    """Size against latency, the front, and every candidate by its number in the table."""
    found = chart.points(result)
    if not found:
        return '<p class="muted">No candidate was made, so there is nothing to draw.</p>'
    x_axis = chart.axis([p.latency_ms for p in found if p.latency_ms])
    y_axis = chart.axis([p.size_kib for p in found])
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x_of(ms: float) -> float:
        return _LEFT + (right - _LEFT) * x_axis.at(ms)

    def y_of(kib: float) -> float:
        return bottom - (bottom - _TOP) * y_axis.at(kib)

    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Model size against latency">',
        f'<rect class="strip" x="{right + 22}" y="{_TOP}" width="{_STRIP}" height="{bottom - _TOP}" rx="4"/>',
    ]
    for tick in x_axis.ticks():
        parts.append(_line("grid", x_of(tick), _TOP, x_of(tick), bottom))
        parts.append(_text("tick", x_of(tick), bottom + 17, f"{tick:.4g}", "middle"))
    for tick in y_axis.ticks():
        parts.append(_line("grid", _LEFT, y_of(tick), right, y_of(tick)))
        parts.append(_text("tick", _LEFT - 8, y_of(tick) + 4, f"{tick:.4g}", "end"))
    parts.append(_line("axis", _LEFT, bottom, right, bottom) + _line("axis", _LEFT, _TOP, _LEFT, bottom))
    middle = (_LEFT + right) / 2
    parts.append(_text("label", middle, _HEIGHT - 10, "median latency of one request on one thread, ms", "middle"))
    parts.append(_text("tick", right + 22 + _STRIP / 2, bottom + 17, "not timed", "middle"))
    parts.append(
        f'<text class="label" transform="translate(16 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        "model file, KiB</text>"
    )
    line = chart.front(found)
    corners = [(x_of(p.latency_ms), y_of(p.size_kib)) for p in line if p.latency_ms]
    if len(corners) > 1:
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        parts.append(f'<polyline class="front" points="{drawn}"/>')
    anchors = [(x_of(p.latency_ms) if p.latency_ms else right + 22 + _STRIP / 2, y_of(p.size_kib)) for p in found]
    texts = [_label(result, p) for p in found]
    sizes = [(6.6 * len(text) + 4, 13.0) for text in texts]
    area = (_LEFT, _TOP, right + 22 + _STRIP + 8, bottom)
    places = chart.place(anchors, sizes, area, corners, [p.row.verdict == "winner" for p in found])
    for p, (x, y), text, (tx, ty), size in zip(found, anchors, texts, places, sizes, strict=True):
        parts.append(_dot(result, p, x, y))
        if chart.far((x, y), (tx, ty), size):
            parts.append(_line("leader", x, y, tx, ty))
        kind = {"winner": " strong", "rejected": " grey"}.get(p.row.verdict, "")
        parts.append(_text(f"number{kind}", tx, ty + 4, text, "middle"))
    return "".join([*parts, "</svg>"])


def _dot(result: SearchResult, p: Point, x: float, y: float) -> str:
    lost = chart.share(p.row, result.accuracy_drop)
    about = (
        f"{p.number}: {words.plain(p.row.candidate.name, 120)}, {words.size(p.row.size_bytes)}, "
        f"{words.latency(p.row.latency_ms)}, {words.lost(p.row.score)} points, {words.VERDICTS[p.row.verdict]}"
    )
    title = f"<title>{escape(about)}</title>"
    if p.row.verdict == "rejected" or lost is None:
        return f'<circle class="rejected" cx="{x:.1f}" cy="{y:.1f}" r="5.5">{title}</circle>'
    dot = f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colours.of_loss(lost)}">{title}</circle>'
    if p.row.verdict == "winner":
        dot += f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="10.5"/>'
    return dot


def _label(result: SearchResult, p: Point) -> str:
    if p.row.verdict == "winner":
        return f"{p.number} winner" + (" (float)" if p.row.candidate.name == result.baseline else "")
    return f"{p.number} float" if p.row.candidate.name == result.baseline else str(p.number)


def sensitivity(layers: Sequence[LayerDamage], unit: str) -> str:
    """A bar a layer, the most sensitive first; those that stay in float are marked."""
    ranked = sorted(layers, key=lambda one: (-one.damage, one.layer))[:MAX_LAYERS]
    most = max((one.damage for one in ranked), default=0.0) or 1.0
    left, width, row = 300, _WIDTH, 22
    height = row * len(ranked) + 30
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="Damage of quantizing each layer">'
    ]
    for i, one in enumerate(ranked):
        y = i * row + 4
        length = max(1.5, (width - left - 90) * max(0.0, one.damage) / most)
        kind = "bar kept" if one.kept_float else "bar"
        name = words.shortened(one.layer, 42)
        title = f"<title>{escape(words.plain(one.layer))}: {one.damage:.4g}</title>"
        parts.append(_text("layer", left - 10, y + 13, name, "end"))
        parts.append(f'<rect class="{kind}" x="{left}" y="{y}" width="{length:.1f}" height="15" rx="2">{title}</rect>')
        parts.append(_text("tick", left + length + 7, y + 12, f"{one.damage:.3g}", "start"))
    parts.append(
        _text("label", left, height - 6, f"{words.plain(unit, 80)} when this layer alone is quantized", "start")
    )
    return "".join([*parts, "</svg>"])


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
