"""The learning curve and the confusion matrix as PNG, where matplotlib is installed (extra `plots`)."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import Any, Final

from edgewise_trainer.errors import MissingExtraError
from edgewise_trainer.evaluation import Evaluation
from edgewise_trainer.fitting import EpochMetrics

CURVE_FILE: Final = "plots/learning_curve.png"
CONFUSION_FILE: Final = "plots/confusion.png"
MAX_CLASSES: Final = 40
"""Above this a confusion matrix cannot be read."""


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(history: Sequence[EpochMetrics], evaluation: Evaluation) -> dict[str, bytes]:
    """PNG files by relative name; the curve only where there is a history.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    found = {}
    if history:
        found[CURVE_FILE] = _learning_curve(history)
    if len(evaluation.labels) <= MAX_CLASSES:
        found[CONFUSION_FILE] = _confusion(evaluation)
    return found


def _learning_curve(history: Sequence[EpochMetrics]) -> bytes:
    figure = _figure(6.0, 3.6)
    axes = figure.subplots()
    epochs = [m.epoch for m in history]
    axes.plot(epochs, [m.loss for m in history], label="training loss", color="tab:blue")
    axes.plot(epochs, [m.heldout_loss for m in history], label="held-out loss", color="tab:blue", linestyle="--")
    axes.set_xlabel("epoch")
    axes.set_ylabel("cross-entropy, nats")
    right = axes.twinx()
    right.plot(epochs, [m.heldout_accuracy for m in history], label="held-out accuracy", color="tab:orange")
    right.set_ylabel("accuracy")
    lines = axes.get_lines() + right.get_lines()
    axes.legend(lines, [line.get_label() for line in lines], loc="center right")
    return _png(figure)


def _confusion(evaluation: Evaluation) -> bytes:
    classes = len(evaluation.labels)
    side = max(3.5, 0.45 * classes)
    figure = _figure(side, side)
    axes = figure.subplots()
    axes.imshow(evaluation.confusion, cmap="Blues")
    axes.set_xticks(range(classes), evaluation.labels)
    axes.set_yticks(range(classes), evaluation.labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    half = evaluation.confusion.max() / 2
    for row, counts in enumerate(evaluation.confusion):
        for column, count in enumerate(counts):
            if count:
                colour = "white" if count > half else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    # The object interface: it touches neither a display nor matplotlib's global state.
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib: install edgewise-trainer[plots]") from error
    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
