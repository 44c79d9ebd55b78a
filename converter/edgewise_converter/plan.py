"""Which passes, with which settings, make the form that a profile wants. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

from edgewise_profiles.schema import Format, Precision, Profile, Target

from edgewise_converter.errors import PassError
from edgewise_converter.passes.entry import PassConfig
from edgewise_converter.passes.onnx_catalogue import OnnxExportConfig, OnnxFloat16Config, OnnxInt8Config
from edgewise_converter.passes.tflite_catalogue import TfliteExportConfig, TfliteInt8Config

CHAINS: Final[dict[tuple[Format, Precision], tuple[str, ...]]] = {
    ("onnx", "float32"): ("onnx_export",),
    ("onnx", "float16"): ("onnx_export", "onnx_float16"),
    ("onnx", "int8"): ("onnx_export", "onnx_int8"),
    ("tflite", "float32"): ("tflite_export",),
    ("tflite", "int8"): ("tflite_export", "tflite_int8"),
}


def has_fixed_chain(profile: Profile) -> bool:
    """Whether the profile's default form is made from a run without a search; compiled forms are not."""
    target = profile.targets[0]
    return (target.format, target.precision) in CHAINS


class Step(NamedTuple):
    """One pass with its settings. Equal steps on equal sources give equal artifacts."""

    name: str
    config: PassConfig
    optional: bool = False
    """Whether it is left out where it would change nothing, or fails."""


def plan(profile: Profile, target: Target) -> tuple[Step, ...]:
    """The steps, exports first, that make `target` for `profile`.

    Raises:
        PassError: no chain makes it from a training run.
    """
    chain = CHAINS.get((target.format, target.precision))
    if chain is None:
        raise PassError(f"no chain of passes makes {target.format}-{target.precision} without a search")
    return tuple(Step(name, _configure(name, profile)) for name in chain)


def _configure(name: str, profile: Profile) -> PassConfig:
    if name == "onnx_export":
        return OnnxExportConfig(opset=profile.opset)
    if name == "onnx_int8":
        return OnnxInt8Config(
            reduce_range=profile.numerics.reduce_range,
            activations="uint8" if profile.machine == "x86_64" else "int8",
        )
    plain: dict[str, PassConfig] = {
        "onnx_float16": OnnxFloat16Config(),
        "tflite_export": TfliteExportConfig(),
        "tflite_int8": TfliteInt8Config(),
    }
    return plain[name]
