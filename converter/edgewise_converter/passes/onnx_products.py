"""Matrix products with constant weights: what Gemm and MatMul have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.passes.onnx_scopes import STANDARD, Scope, attribute


def is_product(scope: Scope, node: Any) -> bool:
    """Whether a node is a product of a value with a constant float32 matrix, and perhaps a constant bias."""
    if node.op_type not in ("Gemm", "MatMul") or node.domain not in STANDARD:
        return False
    weights = scope.array(node.input[1])
    if weights is None or weights.ndim != 2 or not weights.size or scope.constant(node.input[0]) is not None:
        return False
    if node.op_type == "MatMul":
        return True
    has_bias = len(node.input) > 2 and node.input[2]
    return not attribute(node, "transA", 0) and (not has_bias or scope.array(node.input[2]) is not None)


def split(scope: Scope, node: Any) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """The weights (K, N) and the bias of such a product, with Gemm's factors multiplied in."""
    weights = scope.weights(node.input[1])
    if node.op_type == "MatMul":
        return np.ascontiguousarray(weights), None
    weights = weights.T if attribute(node, "transB", 0) else weights
    weights = (weights * np.float32(attribute(node, "alpha", 1.0))).astype(np.float32)
    bias = scope.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if bias is not None:
        bias = (bias * np.float32(attribute(node, "beta", 1.0))).astype(np.float32)
    return np.ascontiguousarray(weights), bias
