"""Evaluation of a classifier on held-out samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgewise_trainer.errors import TrainingError

_BATCH: Final = 512


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model said of N samples.

    Args:
        logits: float32, shape (N, C).
        y: the true classes, int64, shape (N,).
        labels: the names of the C classes.
    """

    logits: NDArray[np.float32]
    y: NDArray[np.int64]
    labels: tuple[str, ...]

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Which samples were classified rightly, shape (N,)."""
        right: NDArray[np.bool_] = self.logits.argmax(1) == self.y
        return right

    @property
    def accuracy(self) -> float:
        """Share of samples classified rightly."""
        return float(self.right.mean())

    @cached_property
    def loss(self) -> float:
        """Mean cross-entropy in nats, computed in float64."""
        z = self.logits.astype(np.float64)
        top = z.max(1, keepdims=True)
        log_sum = top[:, 0] + np.log(np.exp(z - top).sum(1))
        return float((log_sum - z[np.arange(len(z)), self.y]).mean())

    @property
    def figures(self) -> dict[str, float]:
        """The figures by name, as a record holds them."""
        return {"accuracy": self.accuracy, "loss": self.loss, "worst_class_accuracy": self.worst_class_accuracy}

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Counts, shape (C, C): row = true class, column = predicted class."""
        classes = len(self.labels)
        flat = np.bincount(self.y * classes + self.logits.argmax(1), minlength=classes * classes)
        return flat.reshape(classes, classes).astype(np.int64)

    @property
    def per_class(self) -> dict[str, dict[str, float]]:
        """By label: `support` (samples), `recall` and `precision`; 0 where undefined."""
        hits = np.diag(self.confusion)
        support, predicted = self.confusion.sum(1), self.confusion.sum(0)
        return {
            label: {
                "support": float(support[i]),
                "recall": float(hits[i] / support[i]) if support[i] else 0.0,
                "precision": float(hits[i] / predicted[i]) if predicted[i] else 0.0,
            }
            for i, label in enumerate(self.labels)
        }

    @property
    def worst_class_accuracy(self) -> float:
        """Smallest recall among the classes that have samples."""
        return min(row["recall"] for row in self.per_class.values() if row["support"])


def evaluate(model: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64], labels: tuple[str, ...]) -> Evaluation:
    """Run `model` in evaluation mode over samples x (N, ...), y (N,); its mode is put back.

    Raises:
        TrainingError: its output is not (N, len(labels)), or not finite.
    """
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            outputs: list[Any] = [model(batch).numpy() for batch in torch.split(torch.from_numpy(x), _BATCH)]
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise TrainingError(f"the model cannot be run on samples of shape {x.shape[1:]}: {error}") from error
    finally:
        model.train(training)
    logits = np.concatenate(outputs).astype(np.float32)
    if logits.shape != (len(y), len(labels)):
        raise TrainingError(
            f"the model gives {logits.shape}; for {len(labels)} labels it must be {(len(y), len(labels))}"
        )
    if not np.isfinite(logits).all():
        raise TrainingError("the model gives outputs that are not finite")
    return Evaluation(logits=logits, y=y, labels=labels)
