"""One training step as a pure function of tensors: what the exported graph computes.

    g = d loss(model(x; p, b), y) / dp + weight_decay * p + mu * (p - global)
    m' = momentum * m + g;   p' = p - lr * m'

torch's SGD (Sutskever et al. 2013 in torch's form), with FedProx's proximal term (Li et al.
2020), which is nothing at mu = 0. Buffers (batch-norm statistics) come out as new values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from edgewise_trainer.errors import ExportError

StepFunction = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """The function, the names of what it takes and gives, and the state that it starts from."""

    function: StepFunction
    """(x, y, lr, mu, *state) -> (loss, correct, *new state)."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    state: tuple[Tensor, ...]
    """Parameters, momenta (if any), buffers, global parameters: the inputs after `mu`."""
    momentum: float
    weight_decay: float


def build_step(model: nn.Module, *, momentum: float, weight_decay: float) -> Step:
    """The training step of a classifier under cross-entropy.

    Args:
        model: float32 or float64, in training mode; it is not changed.
        momentum: 0 leaves the momenta out of inputs and outputs.
        weight_decay: added to the gradient, as torch's SGD does.

    Raises:
        ExportError: the model has no parameters, frozen ones, or dropout.
    """
    _check_trainable(model)
    names = [name for name, _ in model.named_parameters()]
    buffer_names = [name for name, _ in model.named_buffers()]
    count, with_momentum = len(names), momentum > 0

    def function(x: Tensor, y: Tensor, lr: Tensor, mu: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        rest = list(state)
        parameters = _take(rest, count)
        momenta = _take(rest, count) if with_momentum else []
        buffers = [b.clone() for b in _take(rest, len(buffer_names))]  # the model writes into them
        anchors = _take(rest, count)
        with torch.enable_grad():
            leaves = [p.detach().requires_grad_(True) for p in parameters]
            named = {**dict(zip(names, leaves, strict=True)), **dict(zip(buffer_names, buffers, strict=True))}
            logits = functional_call(model, named, (x,))
            loss = functional.cross_entropy(logits, y)
            # torch.func.grad would fix the batch size while tracing.
            gradients = torch.autograd.grad(loss, leaves)
        with torch.no_grad():
            new_parameters, new_momenta = [], []
            for i, (p, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                g = gradient + weight_decay * p if weight_decay else gradient
                g = g + mu * (p - anchors[i])
                if with_momentum:
                    g = momentum * momenta[i] + g
                    new_momenta.append(g)
                new_parameters.append(p - lr * g)
            correct = (logits.detach().argmax(-1) == y).sum()
        return (loss.detach(), correct, *new_parameters, *new_momenta, *buffers)

    parameters = [p.detach().clone() for p in model.parameters()]
    momenta = [torch.zeros_like(p) for p in parameters] if with_momentum else []
    buffers = [b.detach().clone() for b in model.buffers()]
    momentum_names = names if with_momentum else []
    return Step(
        function=function,
        inputs=(
            *("x", "y", "lr", "mu"),
            *(f"p.{n}" for n in names),
            *(f"m.{n}" for n in momentum_names),
            *(f"b.{n}" for n in buffer_names),
            *(f"g.{n}" for n in names),
        ),
        outputs=(
            *("loss", "correct"),
            *(f"new_p.{n}" for n in names),
            *(f"new_m.{n}" for n in momentum_names),
            *(f"new_b.{n}" for n in buffer_names),
        ),
        state=(*parameters, *momenta, *buffers, *(p.clone() for p in parameters)),
        momentum=momentum,
        weight_decay=weight_decay,
    )


def _check_trainable(model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ExportError("the model has no parameters to train")
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    if frozen:
        raise ExportError(f"the training step of a model with frozen parameters cannot be exported: {frozen[0]!r}")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise ExportError(f"{name!r} is dropout: a device's step has no random source; set its p to 0")


def _take(rest: list[Tensor], count: int) -> list[Tensor]:
    taken = rest[:count]
    del rest[:count]
    return taken
