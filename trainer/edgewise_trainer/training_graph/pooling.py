"""Gradients of pooling in operators that inference runtimes have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgewise_trainer.errors import ExportError
from edgewise_trainer.training_graph.convolution import spread

aten = torch.ops.aten


def max_pool2d_backward(
    gy: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """Replaces `aten.max_pool2d_with_indices_backward`: put each gradient where its maximum stood.

    `indices` count within one channel's plane, as torch has them.
    """
    n, channels, height, width = x.shape
    plane = torch.zeros([n, channels, height * width], dtype=x.dtype)
    sources = gy.reshape(n, channels, gy.shape[2] * gy.shape[3])
    places = indices.reshape(n, channels, gy.shape[2] * gy.shape[3])
    window = spread(kernel, 2)
    steps = spread(stride or window, 2)
    apart = all(s >= k for s, k in zip(steps, window, strict=True)) and max(spread(dilation, 2)) == 1
    # Windows that cannot overlap have no two gradients for one place: no additions needed.
    scattered: Tensor = (aten.scatter.src if apart else aten.scatter_add.default)(plane, 2, places, sources)
    return scattered.reshape(n, channels, height, width)


def avg_pool2d_backward(
    gy: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """Replaces `aten.avg_pool2d_backward`: a depthwise transposed convolution with an even kernel."""
    pads = spread(padding, 2)
    if ceil_mode or divisor is not None or (any(pads) and not count_include_pad):
        raise ExportError(
            "the training step of average pooling with ceil_mode, divisor_override or "
            "count_include_pad=False cannot be exported"
        )
    window = spread(kernel, 2)
    steps = spread(stride or window, 2)
    channels = x.shape[1]
    even = torch.full([channels, 1, *window], 1.0 / (window[0] * window[1]), dtype=x.dtype)
    left_over = [
        i - ((o - 1) * s - 2 * p + k)
        for i, o, s, p, k in zip(x.shape[2:], gy.shape[2:], steps, pads, window, strict=True)
    ]
    result: Tensor = aten.convolution(gy, even, None, steps, pads, [1, 1], True, left_over, channels)
    return result
