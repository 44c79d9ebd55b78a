"""The independent witness of the gates: torch eager, `loss.backward()` and `torch.optim.SGD`.

It shares nothing with the step function but the model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgewise_trainer.training_graph.backend import plain_operators


class Reference:
    """Trains a copy of a model the ordinary way, and names the results as the graph does."""

    def __init__(self, model: nn.Module, *, momentum: float, weight_decay: float) -> None:
        self._model = model
        self._momentum = momentum
        self._weight_decay = weight_decay

    def steps(
        self, state: Sequence[Tensor], batches: Sequence[tuple[Tensor, Tensor]], *, lr: float, mu: float
    ) -> dict[str, NDArray[Any]]:
        """Run one step a batch from `state` (parameters, momenta, buffers, global parameters).

        Returns:
            The last step's `loss` and `correct`, and `new_p.*`, `new_m.*`, `new_b.*`.
        """
        model = copy.deepcopy(self._model).train()
        parameters, buffers = list(model.parameters()), list(model.buffers())
        rest = [t.clone() for t in state]
        starts, rest = rest[: len(parameters)], rest[len(parameters) :]
        momenta, rest = (rest[: len(parameters)], rest[len(parameters) :]) if self._momentum else ([], rest)
        statistics, anchors = rest[: len(buffers)], rest[len(buffers) :]
        with torch.no_grad():
            for tensor, value in zip((*parameters, *buffers), (*starts, *statistics), strict=True):
                tensor.copy_(value)
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=self._momentum, weight_decay=self._weight_decay)
        for parameter, momentum in zip(parameters, momenta, strict=bool(momenta)):
            optimizer.state[parameter]["momentum_buffer"] = momentum
        loss, correct = torch.zeros(()), torch.zeros(())
        with torch.enable_grad(), plain_operators():
            for x, y in batches:
                optimizer.zero_grad()
                logits = model(x)
                loss = functional.cross_entropy(logits, y)
                pull = sum(((p - a) ** 2).sum() for p, a in zip(parameters, anchors, strict=True))
                (loss + mu / 2 * pull).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                correct = (logits.argmax(-1) == y).sum()
        named = {"loss": loss, "correct": correct}
        named |= {f"new_p.{n}": p for n, p in model.named_parameters()}
        if self._momentum:
            named |= {f"new_m.{n}": optimizer.state[p]["momentum_buffer"] for n, p in model.named_parameters()}
        named |= {f"new_b.{n}": b for n, b in model.named_buffers()}
        return {name: tensor.detach().numpy() for name, tensor in named.items()}
