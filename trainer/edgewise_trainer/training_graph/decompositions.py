"""The table of operators that tracing replaces by simpler ones, until none is a gradient of another.

torch's core table, what it lacks for training, and our own for convolution, pooling, batch
normalisation and activations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions

from edgewise_trainer.training_graph.convolution import convolution_backward
from edgewise_trainer.training_graph.normalisation import batch_norm, batch_norm_backward
from edgewise_trainer.training_graph.pooling import avg_pool2d_backward, max_pool2d_backward

aten = torch.ops.aten
Table = dict[Any, Callable[..., Any]]


def decomposition_table() -> Table:
    """A fresh table: operator -> function that computes it from simpler ones."""
    table: Table = dict(core_aten_decompositions())
    table.update(
        get_decompositions(
            [
                aten._native_batch_norm_legit_functional,
                aten._batch_norm_with_update,
                aten._batch_norm_with_update_functional,
                aten.batch_norm_backward,
                aten.nll_loss_forward,
                aten.native_layer_norm,
                aten.native_group_norm,
                aten._softmax_backward_data,
                aten.embedding_dense_backward,
            ]
        )
    )
    table.update(
        {
            aten.convolution_backward.default: convolution_backward,
            aten.max_pool2d_with_indices_backward.default: max_pool2d_backward,
            aten.avg_pool2d_backward.default: avg_pool2d_backward,
            aten.native_batch_norm.default: batch_norm,
            aten._native_batch_norm_legit.default: batch_norm,
            aten.native_batch_norm_backward.default: batch_norm_backward,
            aten.silu_backward.default: _silu_backward,
            aten.threshold_backward.default: _threshold_backward,
            aten.empty_permuted.default: _zeros_for_empty,
        }
    )
    # Stays whole: it is what the two batch-norm functions are made of.
    table.pop(aten._native_batch_norm_legit_no_training.default, None)
    return table


def _silu_backward(gy: Tensor, x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return gy * (s * (1 + x * (1 - s)))


def _threshold_backward(gy: Tensor, out: Tensor, threshold: float) -> Tensor:
    return gy * (out > threshold).to(gy.dtype)


def _zeros_for_empty(size: list[int], order: list[int], *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    # ONNX has no uninitialised tensor; the values are written over.
    return torch.zeros(list(size), dtype=dtype)
