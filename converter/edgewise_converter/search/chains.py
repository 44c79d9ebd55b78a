"""The table that maps a target to the chains of passes that make it: one line a form. Pure.

Order matters twice: plain forms come first, and of forms that are as good the earlier one is
taken for the simpler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

from edgewise_profiles.schema import EngineName, Format, Precision, Profile

from edgewise_converter.passes.iree_target import features_of

_HALF: Final = frozenset({"asimdhp", "avx512_fp16"})
Start = Literal["onnx", "tflite"]


class Pass(NamedTuple):
    """A pass and the settings that make this chain; the others are the profile's, or defaults."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()
    optional: bool = False
    """Left out where it would change nothing, or fails."""


class Chain(NamedTuple):
    """One form."""

    label: str
    """What sets it apart from the other forms of its engine and precision; empty for the plain one."""
    engines: tuple[EngineName, ...]
    format: Format
    precision: Precision | Literal["as it is"]
    start: Start
    passes: tuple[Pass, ...]
    is_float: bool = False


def _p(name: str, *, optional: bool = False, **settings: Any) -> Pass:
    return Pass(name, tuple(sorted(settings.items())), optional)


START: Final[dict[tuple[Start, str], tuple[Pass, ...]]] = {
    ("onnx", "torch"): (_p("onnx_export"),),
    ("onnx", "onnx"): (_p("onnx_opset"),),
    ("tflite", "torch"): (_p("tflite_export"),),
    ("tflite", "tflite"): (),
}
"""How a model of a family comes to the format that a chain starts from; other families cannot."""

CONTAINER: Final = "onnx_ort"
"""What puts a finished ONNX form into onnxruntime's own container."""
WIDENING: Final = frozenset({"tflite_float32"})
"""Passes that make plain float of a file that is not."""

_SIMPLE: Final = (_p("onnx_simplify", optional=True),)
_FIXED: Final = (_p("onnx_fix_shapes", optional=True), *_SIMPLE)
_COMPACT: Final = _p("tflite_compact")
_ORT: Final[tuple[EngineName, ...]] = ("onnxruntime",)
_TFLITE: Final[tuple[EngineName, ...]] = ("litert", "tflite-runtime")


def _onnx(label: str, precision: Precision, *passes: Pass, is_float: bool = False) -> Chain:
    return Chain(label, _ORT, "onnx", precision, "onnx", passes, is_float)


def _tflite(label: str, precision: Precision, *passes: Pass, is_float: bool = False) -> Chain:
    return Chain(label, _TFLITE, "tflite", precision, "tflite", passes, is_float)


CHAINS: Final[tuple[Chain, ...]] = (
    _onnx("", "float32", is_float=True),
    _onnx("simplified", "float32", *_SIMPLE, is_float=True),
    _onnx("fixed shapes", "float32", *_FIXED, is_float=True),
    _onnx("", "float16", *_SIMPLE, _p("onnx_float16")),
    _onnx("fixed shapes", "float16", *_FIXED, _p("onnx_float16")),
    _onnx("half arithmetic", "float16", *_FIXED, _p("onnx_float16", compute="float16")),
    _onnx("", "int8", *_SIMPLE, _p("onnx_int8")),
    _onnx("fixed shapes", "int8", *_FIXED, _p("onnx_int8")),
    _onnx("per tensor", "int8", *_SIMPLE, _p("onnx_int8", per_channel=False)),
    _onnx("per tensor, fixed shapes", "int8", *_FIXED, _p("onnx_int8", per_channel=False)),
    _onnx("not chained", "int8", *_FIXED, _p("onnx_int8", chained=False)),
    _onnx("percentile", "int8", *_FIXED, _p("onnx_int8", ranges="percentile")),
    _onnx("entropy", "int8", *_FIXED, _p("onnx_int8", ranges="entropy")),
    _onnx("percentile, not chained", "int8", *_FIXED, _p("onnx_int8", ranges="percentile", chained=False)),
    _onnx(
        "LSTM dynamic",
        "int8",
        *_FIXED,
        _p("onnx_int8"),
        _p("onnx_int8_dynamic", operators=("LSTM",)),
    ),
    _onnx("products alone", "int8", *_FIXED, _p("onnx_int8", operators=("Gemm", "MatMul"))),
    _onnx("entropy, not chained", "int8", *_FIXED, _p("onnx_int8", ranges="entropy", chained=False)),
    _onnx("free shapes", "int8-dynamic", *_SIMPLE, _p("onnx_int8_dynamic")),
    _onnx("per tensor", "int8-dynamic", *_FIXED, _p("onnx_int8_dynamic", per_channel=False)),
    _onnx("per tensor, free shapes", "int8-dynamic", *_SIMPLE, _p("onnx_int8_dynamic", per_channel=False)),
    _onnx("", "int8-dynamic", *_FIXED, _p("onnx_int8_dynamic")),
    _onnx("weights alone", "int8-dynamic", *_FIXED, _p("onnx_int8_weights")),
    _onnx("", "int4", *_FIXED, _p("onnx_int4")),
    _onnx("int8 arithmetic", "int4", *_FIXED, _p("onnx_int4", compute="int8")),
    Chain("as it is", _ORT, "onnx", "as it is", "onnx", (), True),
    Chain("as it is, simplified", _ORT, "onnx", "as it is", "onnx", _FIXED, True),
    Chain("", ("iree",), "vmfb", "float32", "onnx", (*_FIXED, _p("iree_compile")), True),
    Chain("", ("iree",), "vmfb", "int8", "onnx", (*_FIXED, _p("onnx_int8"), _p("iree_compile"))),
    Chain("", ("c99",), "c99", "int8", "tflite", (_p("tflite_int8"), _p("c99_generate"))),
    Chain("as it is", ("c99",), "c99", "as it is", "tflite", (_p("c99_generate"),)),
    _tflite("", "float32", is_float=True),
    _tflite("compact", "float32", _COMPACT, is_float=True),
    _tflite("unfolded", "float32", _p("tflite_float32"), is_float=True),
    _tflite("", "float16", _p("tflite_float16")),
    _tflite("", "int8-dynamic", _p("tflite_int8_dynamic")),
    _tflite("", "int8", _p("tflite_int8")),
    _tflite("float inputs and outputs", "int8", _p("tflite_int8", io="float32")),
    _tflite("percentile", "int8", _p("tflite_int8", ranges="percentile")),
    _tflite("percentile, float inputs and outputs", "int8", _p("tflite_int8", io="float32", ranges="percentile")),
    _tflite("average", "int8", _p("tflite_int8", ranges="average")),
    _tflite("", "int16x8", _p("tflite_int16x8")),
    Chain("as it is", _TFLITE, "tflite", "as it is", "tflite", (), True),
    Chain("as it is, compact", _TFLITE, "tflite", "as it is", "tflite", (_COMPACT,), True),
)


def _int8(profile: Profile, _too_new: bool) -> dict[str, Any]:
    return {
        "reduce_range": profile.numerics.reduce_range,
        "activations": "uint8" if profile.machine == "x86_64" else "int8",
    }


def _opset(profile: Profile, too_new: bool) -> dict[str, Any] | None:
    """Only a file that is too new is brought down."""
    return {"opset": profile.opset} if too_new else None


def _iree(profile: Profile, _too_new: bool) -> dict[str, Any]:
    return {"machine": profile.machine, "features": features_of(profile.machine, profile.cpu.features)}


FROM_PROFILE: Final[dict[str, Callable[[Profile, bool], dict[str, Any] | None]]] = {
    "onnx_export": lambda profile, _too_new: {"opset": profile.opset},
    "onnx_opset": _opset,
    "onnx_int8": _int8,
    "iree_compile": _iree,
    "c99_generate": lambda profile, _too_new: {"board": profile.id},
    "onnx_int8_dynamic": lambda profile, _too_new: {"reduce_range": profile.numerics.reduce_range},
}
"""Settings that the profile decides, given whether the file is too new for devices; None leaves the pass out."""


def allowed(chain: Chain, profile: Profile) -> bool:
    """Whether the profile's processor makes sense of a chain: half-precision arithmetic needs instructions for it."""
    half = any(("compute", "float16") in p.settings for p in chain.passes)
    return not half or bool(_HALF & {*profile.cpu.features, *profile.cpu.any_of})
