"""Operators beyond the ONNX standard that onnxruntime itself brings along, on every processor."""

from __future__ import annotations

from typing import Final

CONTRIBUTED: Final = "com.microsoft"
STANDARD_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})
_CONTRIBUTED: Final = frozenset(
    {
        "Attention",
        "BiasGelu",
        "ConvTransposeWithDynamicPads",
        "DequantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "EmbedLayerNormalization",
        "FastGelu",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "GatherBlockQuantized",
        "GatherND",
        "Gelu",
        "GroupQueryAttention",
        "Inverse",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MaxpoolWithMask",
        "MultiHeadAttention",
        "NhwcMaxPool",
        "QAttention",
        "QGemm",
        "QLinearAdd",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearConv",
        "QLinearGlobalAveragePool",
        "QLinearLeakyRelu",
        "QLinearMul",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "QLinearWhere",
        "QuantizeLinear",
        "QuickGelu",
        "RotaryEmbedding",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)
"""Of onnxruntime's docs/ContribOperators.md, those that its CPU provider has since 1.17."""


def is_served(domain: str, operator: str) -> bool:
    """Whether onnxruntime can know the operator: by the standard's domains, or as its own."""
    return domain in STANDARD_DOMAINS or (domain == CONTRIBUTED and operator in _CONTRIBUTED)
