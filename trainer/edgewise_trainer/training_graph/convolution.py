"""The gradient of a convolution in operators that inference runtimes have.

Notation: x (N, C_in, *I), w (C_out, C_in/groups, *K), y = conv(x, w), gy (N, C_out, *O) the
gradient of y; N may be symbolic, every other extent is a number.

- Input gradient, stride 1: a plain convolution of gy with the flipped kernel whose channel
  axes are swapped. Otherwise a transposed convolution.
- Weight gradient: w meets x at each of its K offsets in one strided slice of the padded input,
  so it is one matrix product of gy with those slices (im2col). Against the textbook form, a
  convolution with batch and channels swapped, it keeps the batch symbolic, and is faster.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from edgewise_trainer.errors import ExportError

aten = torch.ops.aten
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def spread(values: Sequence[int], count: int) -> list[int]:
    """One value for each of `count` axes: torch lets a single one stand for all."""
    values = list(values)
    return values * count if len(values) == 1 else values


def convolution_backward(
    gy: Tensor,
    x: Tensor,
    w: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> Gradients:
    """Replaces `aten.convolution_backward`: the gradients of x, w and bias that the mask asks for."""
    if transposed:
        raise ExportError("the training step of a transposed convolution cannot be exported")
    axes = x.dim() - 2
    steps, pads, gaps = spread(stride, axes), spread(padding, axes), spread(dilation, axes)
    grad_x = _input_gradient(gy, x, w, steps, pads, gaps, groups) if output_mask[0] else None
    grad_w = _weight_gradient(gy, x, w, steps, pads, gaps, groups) if output_mask[1] else None
    grad_b = gy.sum([0, *range(2, 2 + axes)]) if output_mask[2] else None
    return grad_x, grad_w, grad_b


def _input_gradient(
    gy: Tensor, x: Tensor, w: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    kernel = list(w.shape[2:])
    axes = len(kernel)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    mirrored = [r - p for r, p in zip(reach, padding, strict=True)]
    if all(s == 1 for s in stride) and all(m >= 0 for m in mirrored):
        c_out, c_group = w.shape[0], w.shape[1]
        flipped = w.flip(list(range(2, 2 + axes))) if any(k > 1 for k in kernel) else w
        swapped = flipped.reshape(groups, c_out // groups, c_group, *kernel).transpose(1, 2)
        swapped = swapped.reshape(groups * c_group, c_out // groups, *kernel)
        return _convolve(gy, swapped, [1] * axes, mirrored, dilation, False, [0] * axes, groups)
    # What the forward pass left over at the far edge comes back as output padding.
    left_over = [
        i - ((o - 1) * s - 2 * p + r + 1)
        for i, o, s, p, r in zip(x.shape[2:], gy.shape[2:], stride, padding, reach, strict=True)
    ]
    return _convolve(gy, w, stride, padding, dilation, True, left_over, groups)


def _weight_gradient(
    gy: Tensor, x: Tensor, w: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    n, c_in = x.shape[0], x.shape[1]
    c_out, c_group, *kernel = w.shape
    places = math.prod(gy.shape[2:])
    slices = _kernel_slices(x, kernel, list(gy.shape[2:]), stride, padding, dilation)
    taps = len(slices)
    if groups > 1 and groups == c_in == c_out:
        # Depthwise: each channel meets only itself.
        sums = [(piece * gy).sum([0, *range(2, gy.dim())]) for piece in slices]
        return torch.stack(sums, 1).reshape(c_out, 1, *kernel)
    columns = torch.cat(slices, 1) if taps > 1 else slices[0]  # (N, taps * C_in, *O)
    if groups == 1:
        left = gy.reshape(n, c_out, places).transpose(0, 1).reshape(c_out, n * places)
        right = columns.reshape(n, taps * c_in, places).transpose(0, 1).reshape(taps * c_in, n * places)
        product: Tensor = aten.mm(left, right.t())
        return product.reshape(c_out, taps, c_in).transpose(1, 2).reshape(c_out, c_in, *kernel)
    per_group = c_out // groups
    left = gy.reshape(n, groups, per_group, places).permute(1, 2, 0, 3).reshape(groups, per_group, n * places)
    right = columns.reshape(n, taps, groups, c_group, places).permute(2, 0, 4, 3, 1)
    product = aten.bmm(left, right.reshape(groups, n * places, c_group * taps))
    return product.reshape(c_out, c_group, *kernel)


def _kernel_slices(
    x: Tensor, kernel: list[int], out: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> list[Tensor]:
    """For each kernel offset the part of x that it meets, shape (N, C_in, *O)."""
    padded = x
    if any(padding):
        padded = aten.constant_pad_nd(x, [p for side in reversed(padding) for p in (side, side)], 0.0)
    pieces = []
    for offsets in itertools.product(*(range(k) for k in kernel)):
        piece = padded
        for axis, offset in enumerate(offsets):
            begin = offset * dilation[axis]
            end = begin + (out[axis] - 1) * stride[axis] + 1
            if (begin, end, stride[axis]) != (0, padded.shape[2 + axis], 1):
                piece = aten.slice.Tensor(piece, 2 + axis, begin, end, stride[axis])
        pieces.append(piece)
    return pieces


def _convolve(
    x: Tensor,
    w: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    result: Tensor = aten.convolution(x, w, None, stride, padding, dilation, transposed, output_padding, groups)
    return result
