"""The training loop: minibatch SGD with momentum on the cross-entropy, seeded and deterministic."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgewise_trainer.config import TrainSection
from edgewise_trainer.datasets import Dataset
from edgewise_trainer.errors import TrainingError
from edgewise_trainer.evaluation import evaluate
from edgewise_trainer.progress import Progress, ProgressCallback


class EpochMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What one epoch gave. Held-out figures are for the learning curve; nothing is chosen by them."""

    epoch: int
    loss: float
    accuracy: float
    heldout_loss: float
    heldout_accuracy: float
    lr: float


def fit(
    model: nn.Module,
    data: Dataset,
    section: TrainSection,
    progress: ProgressCallback,
    on_epoch: Callable[[EpochMetrics], None],
) -> tuple[EpochMetrics, ...]:
    """Train `model` in place; call inside `determinism.repeatable`.

    Raises:
        TrainingError: the loss is not finite, or the model does not take these samples.
    """
    x, y = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
    random = np.random.default_rng(section.seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=section.lr, momentum=section.momentum, weight_decay=section.weight_decay
    )
    steps = section.epochs * math.ceil(len(y) / section.batch_size)
    started, step = time.monotonic(), 0
    history: list[EpochMetrics] = []
    for epoch in range(1, section.epochs + 1):
        model.train()
        order = torch.from_numpy(random.permutation(len(y)))
        loss_sum, correct, seen, lr = 0.0, 0, 0, section.lr
        for chosen in torch.split(order, section.batch_size):
            lr = _learning_rate(section, step, steps)
            step += 1
            if len(chosen) == 1 and len(y) > 1:
                continue  # batch normalisation has no variance of one sample
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            logits = _forward(model, x[chosen])
            loss = functional.cross_entropy(logits, y[chosen], label_smoothing=section.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += float(loss.detach()) * len(chosen)
            correct += int((logits.argmax(1) == y[chosen]).sum())
            seen += len(chosen)
        if not math.isfinite(loss_sum):
            raise TrainingError(f"the loss is not finite in epoch {epoch}; lower [train] lr (now {section.lr})")
        heldout = evaluate(model, data.x_test, data.y_test, data.labels)
        metrics = EpochMetrics(
            epoch=epoch,
            loss=loss_sum / seen,
            accuracy=correct / seen,
            heldout_loss=heldout.loss,
            heldout_accuracy=heldout.accuracy,
            lr=lr,
        )
        history.append(metrics)
        on_epoch(metrics)
        progress(
            Progress(
                stage="train",
                epoch=epoch,
                epochs=section.epochs,
                loss=loss_sum / seen,
                accuracy=correct / seen,
                heldout_accuracy=heldout.accuracy,
                eta_s=(time.monotonic() - started) / epoch * (section.epochs - epoch),
            )
        )
    model.eval()
    return tuple(history)


def _forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    try:
        return model(x)  # type: ignore[no-any-return]
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise TrainingError(f"the model does not take a batch of shape {tuple(x.shape)}: {error}") from error


def _learning_rate(section: TrainSection, step: int, steps: int) -> float:
    if section.schedule == "constant":
        return section.lr
    return section.lr * 0.5 * (1.0 + math.cos(math.pi * step / steps))
