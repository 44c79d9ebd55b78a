"""Latencies of several subjects as PNG: what share of the calls took at most how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from edgewise_converter.reporting.picture import figure_of, literal, to_png
from edgewise_converter.reporting.words import shortened

_COLOURS: Final = ("#1b6ac9", "#d1495b", "#1b9e77", "#8e5bc8", "#c77f1a", "#3c4450")
_MAX_POINTS: Final = 4000


def draw(times_ns: Mapping[str, Sequence[int]], measured_on: str) -> bytes:
    """The cumulative distribution of each subject's calls, its median and 99th percentile marked.

    Args:
        times_ns: durations by subject, nanoseconds; at least one each.
        measured_on: where, in words.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = figure_of(8.6, 4.6)
    axes = figure.add_axes((0.075, 0.13, 0.9, 0.7))
    for i, (name, taken) in enumerate(times_ns.items()):
        times = np.sort(np.asarray(taken, np.float64)) / 1e6
        shares = np.arange(1, len(times) + 1) / len(times)
        at = np.unique(np.linspace(0, len(times) - 1, _MAX_POINTS).astype(np.int64))
        median, p99 = np.percentile(times, (50, 99), method="inverted_cdf")
        colour = _COLOURS[i % len(_COLOURS)]
        label = literal(f"{shortened(name, 40)}: median {median:.3g} ms, p99 {p99:.3g} ms")
        axes.step(times[at], 100 * shares[at], where="post", color=colour, linewidth=1.6, label=label)
        axes.plot([median, p99], [50, 99], "o", color=colour, markersize=5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _position: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _position: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.set_ylim(0, 102)
    axes.set_xlabel("time of one call, ms (logarithmic)", fontsize=9)
    axes.set_ylabel("calls that took at most as long, %", fontsize=9)
    axes.tick_params(labelsize=8.5, which="both", length=3.5, pad=3.5)
    axes.grid(True, color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8.5, loc="lower right", frameon=True, edgecolor="#e6e8eb")
    figure.text(0.02, 0.945, "Latency, call by call", fontsize=12, fontweight="bold", va="center", color="#16191d")
    figure.text(0.02, 0.885, literal(f"measured {measured_on[:130]}"), fontsize=8, va="center", color="#5b626b")
    return to_png(figure)
