"""Stands for a model that another tool made: softmax regression on scikit-learn's digits, as ONNX.

    python examples/own_model/make.py FOLDER

writes `digits-linear.onnx` and `sample.npz`: 400 inputs `x` (N, 64) float32, pixels 0 to 16, with
their classes `y`. Only numpy, onnx and scikit-learn are needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

STEPS, RATE = 300, 0.5


def train(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (64, 10) and bias (10,) by gradient descent on the cross-entropy."""
    w, b = np.zeros((x.shape[1], 10)), np.zeros(10)
    wanted = np.eye(10)[y]
    for _ in range(STEPS):
        logits = x @ w + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        w -= RATE * x.T @ (p - wanted) / len(x)
        b -= RATE * (p - wanted).mean(0)
    return w.astype(np.float32), b.astype(np.float32)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    order = np.random.default_rng(1).permutation(len(digits.data))
    x, y = digits.data[order].astype(np.float32), digits.target[order]
    w, b = train(x[:-400] / 16, y[:-400])
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "scale"], ["scaled"]),
            helper.make_node("Gemm", ["scaled", "w", "b"], ["logits"]),
        ],
        "digits-linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [
            numpy_helper.from_array(np.array(1 / 16, np.float32), "scale"),
            numpy_helper.from_array(w, "w"),
            numpy_helper.from_array(b, "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "digits-linear.onnx")
    np.savez(folder / "sample.npz", x=x[-400:], y=y[-400:])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
