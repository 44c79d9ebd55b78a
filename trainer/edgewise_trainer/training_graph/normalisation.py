"""Batch normalisation in training mode, and its gradient (Ioffe, Szegedy 2015, section 3).

torch's own decompositions work too, in more passes over the activations. Here the affine part
of both directions is one inference batch normalisation, for which runtimes have a fused kernel.
Notation: m values a channel, xc = x - mean, s = 1 / sqrt(var + eps), y = w * s * xc + b.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgewise_trainer.errors import ExportError

aten = torch.ops.aten


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Replaces `aten.native_batch_norm` in training mode; updates the running statistics in place.

    Returns:
        y, the batch's mean, and s, as torch does.
    """
    if not training:
        raise ExportError("batch normalisation in evaluation mode inside the training step cannot be exported")
    over = [0, *range(2, x.dim())]
    mean = x.mean(over)
    centred = x - _per_channel(mean, x)
    variance = (centred * centred).mean(over)
    scale = torch.ones_like(mean) if weight is None else weight
    shift = torch.zeros_like(mean) if bias is None else bias
    y = _affine(x, scale, shift, mean, variance, eps)
    if running_mean is not None and running_var is not None:
        m = x.numel() // x.shape[1]
        running_mean.copy_(momentum * mean + (1 - momentum) * running_mean)
        # The running variance is the unbiased one.
        running_var.copy_(momentum * variance * (m / (m - 1)) + (1 - momentum) * running_var)
    return y, mean, torch.rsqrt(variance + eps)


def batch_norm_backward(
    gy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    inverse_std: Tensor,
    training: bool,
    eps: float,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Replaces `aten.native_batch_norm_backward`.

    gx = w * s * (gy - sum(gy) / m - xc * s^2 * sum(gy * xc) / m).
    """
    over = [0, *range(2, x.dim())]
    m = x.numel() // x.shape[1]
    centred = x - _per_channel(mean, x)
    sum_gy = gy.sum(over)
    sum_gy_xc = (gy * centred).sum(over)
    slope = inverse_std if weight is None else weight * inverse_std
    along_x = -slope * inverse_std * inverse_std * sum_gy_xc / m
    constant = -slope * sum_gy / m
    zero, one = torch.zeros_like(slope), torch.ones_like(slope)
    gx = _affine(gy, slope, constant, zero, one, 0.0) + centred * _per_channel(along_x, x)
    return gx, sum_gy_xc * inverse_std, sum_gy


def _affine(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    result: Tensor = aten._native_batch_norm_legit_no_training(x, weight, bias, mean, variance, 0.0, eps)[0]
    return result


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view([1, -1] + [1] * (like.dim() - 2))
