"""The peers' environments, pinned."""

from __future__ import annotations

from typing import Final

ENVIRONMENTS: Final[dict[str, tuple[str, ...]]] = {
    "onnxruntime": ("onnxruntime==1.32.0", "onnx==1.23.2", "sympy==1.14.0"),
    "olive": ("olive-ai==0.13.0", "torch==2.13.0", "onnxruntime==1.32.0", "onnx==1.23.2", "requests==2.32.5"),
    "ai-edge-quantizer": ("ai-edge-quantizer==0.10.0",),
    "tflite2onnx": ("tflite2onnx==0.4.1", "onnx==1.23.2", "numpy==2.4.6"),
}
"""Olive 0.13 imports `requests` without naming it as a requirement."""
