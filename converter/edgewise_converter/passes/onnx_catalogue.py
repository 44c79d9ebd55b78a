"""The passes that make ONNX files, and their settings.

All but the export read any ONNX file: several inputs and outputs, graphs inside of nodes, any batch.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from edgewise_converter.passes.entry import CalibrationSamples, KeptFloat, PassEntry

MAX_SIZE: Final = 2**20
"""Of one dimension that is fixed."""
StaticOperator = Literal["Conv", "Gemm", "MatMul"]
DynamicOperator = Literal["Gemm", "LSTM", "MatMul"]
Opset = Annotated[int, Meta(ge=13, le=23)]


class OnnxExportConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PyTorch to ONNX, float32."""

    opset: Annotated[int, Meta(ge=18, le=23)] = 20


class OnnxSimplifyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fewer nodes with the same answers: constants folded, branches decided, what is not used left out."""


class OnnxFixShapesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Free dimensions to sizes: the batch, those named here, and all others as the calibration requests have them."""

    batch: Annotated[int, Meta(ge=1, le=4096)] = 1
    """Of a model whose tensors have a batch in common."""
    sizes: Annotated[tuple[tuple[str, Annotated[int, Meta(ge=1, le=MAX_SIZE)]], ...], Meta(max_length=64)] = ()
    """A free dimension's name, or `input:axis` where it has none, and its size."""


class OnnxOpsetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same graph in another operator set and IR version, newer or older."""

    opset: Opset = 20
    ir_version: Annotated[int, Meta(ge=7, le=13)] = 10
    """At most; an older file keeps its own."""


class OnnxFloat16Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ONNX float32 to float16; inputs and outputs stay float32."""

    compute: Literal["float32", "float16"] = "float32"
    """`float32` halves the file alone: weights are widened once, as the file is loaded, and the speed
    is float32's. `float16` computes in it too, which only pays where the processor can."""
    keep_float: KeptFloat = ()
    """Nodes whose weights, or arithmetic, stay float32, besides those whose values float16 cannot hold."""


class OnnxInt8Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ONNX float32 to int8: static, as QuantizeLinear / DequantizeLinear pairs."""

    reduce_range: bool
    """Weights of 7 bits, where the processor adds products in 16."""
    activations: Literal["uint8", "int8"] = "uint8"
    """`uint8` is x86's fast path, `int8` Arm's."""
    symmetric: bool = False
    """Whether zero lies in the middle of every activation's range."""
    per_channel: bool = True
    """Whether each output channel's weights have a scale of their own; one scale in all makes a small file smaller."""
    ranges: Literal["minmax", "percentile", "entropy"] = "minmax"
    """How an activation's range comes from the calibration samples: from the smallest to the largest value;
    the `percentile` share of all values; or the range whose histogram, quantized, diverges least."""
    percentile: Annotated[float, Meta(ge=90.0, le=100.0)] = 99.99
    """Per cent of the values that lie within the range, an equal share cut off at each end."""
    operators: Annotated[tuple[StaticOperator, ...], Meta(min_length=1)] = ("Conv", "Gemm", "MatMul")
    """What is quantized, where its weights are constant."""
    chained: bool = True
    """Whether what lies between two of those (additions, pooling, moving of values) is int8 too."""
    calibration_samples: CalibrationSamples = 512
    calibration_batch: Annotated[int, Meta(ge=1, le=4096)] = 64
    keep_float: KeptFloat = ()


class OnnxInt8DynamicConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ONNX float32 to int8 weights per channel; activations are quantized as they come.

    Convolutions are never quantized in this way: onnxruntime has no fast kernel for it.
    """

    operators: Annotated[tuple[DynamicOperator, ...], Meta(min_length=1)] = ("Gemm", "LSTM", "MatMul")
    per_channel: bool = True
    """Whether each output channel has a scale of its own, as an LSTM's always have; one in all is a bit faster."""
    reduce_range: bool = False
    """Weights of 7 bits, where the processor adds products in 16."""
    keep_float: KeptFloat = ()


class OnnxInt8WeightsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ONNX float32 to int8 weights per channel, which are widened again where they are used."""

    keep_float: KeptFloat = ()


class OnnxInt4Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ONNX float32 to int4 weights by block, of matrix products with constant weights."""

    block_size: Literal[16, 32, 64, 128] = 32
    """Weights that share a scale, along the sum."""
    symmetric: bool = True
    """Whether zero lies in the middle of every block's range; else each block has a zero point too."""
    compute: Literal["float32", "int8"] = "float32"
    """In which form products are computed; `int8` quantizes activations as they come."""
    keep_float: KeptFloat = ()


class OnnxOrtConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ONNX to onnxruntime's own container, which loads faster; no optimization that only fits one processor."""

    level: Literal["basic", "extended"] = "extended"
    """How far the graph is optimized beforehand: onnxruntime does not optimize such a file when it loads it."""


_ORT: Final = ("onnxruntime",)
ENTRIES: Final = (
    PassEntry("onnx_export", "export to ONNX", None, "onnx", "float32", OnnxExportConfig, ("torch", "onnxscript")),
    PassEntry("onnx_simplify", "simplify the ONNX graph", "onnx", "onnx", None, OnnxSimplifyConfig, ("onnxslim",)),
    PassEntry("onnx_fix_shapes", "fix the ONNX graph's shapes", "onnx", "onnx", None, OnnxFixShapesConfig, ()),
    PassEntry("onnx_opset", "ONNX to another operator set", "onnx", "onnx", None, OnnxOpsetConfig, ()),
    PassEntry("onnx_float16", "ONNX to half precision", "onnx", "onnx", "float16", OnnxFloat16Config, _ORT),
    PassEntry("onnx_int8", "ONNX to static int8", "onnx", "onnx", "int8", OnnxInt8Config, _ORT),
    PassEntry("onnx_int8_dynamic", "ONNX to dynamic int8", "onnx", "onnx", "int8-dynamic", OnnxInt8DynamicConfig, _ORT),
    PassEntry("onnx_int8_weights", "ONNX to int8 weights", "onnx", "onnx", "int8-dynamic", OnnxInt8WeightsConfig, ()),
    PassEntry("onnx_int4", "ONNX to int4 weights", "onnx", "onnx", "int4", OnnxInt4Config, _ORT),
    PassEntry("onnx_ort", "ONNX to onnxruntime's container", "onnx", "ort", None, OnnxOrtConfig, _ORT),
)
