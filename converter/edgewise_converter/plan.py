"""Which passes, with which settings, make the form that a profile wants. Pure."""

from __future__ import annotations

from typing import NamedTuple

from edgewise_profiles.schema import Profile, Target

from edgewise_converter.passes.configs import (
    OnnxExportConfig,
    OnnxFloat16Config,
    OnnxInt8Config,
    PassConfig,
    TfliteExportConfig,
    TfliteInt8Config,
)
from edgewise_converter.passes.registry import PASSES, find


class Step(NamedTuple):
    """One pass with its settings. Equal steps on equal sources give equal artifacts."""

    name: str
    config: PassConfig


def plan(profile: Profile, target: Target) -> tuple[Step, ...]:
    """The steps, exports first, that make `target` for `profile`."""
    entry = find(target.format, target.precision)
    chain = [entry]
    while chain[0].after is not None:
        chain.insert(0, PASSES[chain[0].after])
    return tuple(Step(e.name, _configure(e.config, profile)) for e in chain)


def _configure(kind: type[PassConfig], profile: Profile) -> PassConfig:
    if kind is OnnxExportConfig:
        return OnnxExportConfig(opset=profile.engine("onnxruntime").opset)
    if kind is OnnxInt8Config:
        return OnnxInt8Config(
            reduce_range=profile.numerics.reduce_range,
            activations="uint8" if profile.machine == "x86_64" else "int8",
        )
    plain: dict[type[PassConfig], PassConfig] = {
        OnnxFloat16Config: OnnxFloat16Config(),
        TfliteExportConfig: TfliteExportConfig(),
        TfliteInt8Config: TfliteInt8Config(),
    }
    return plain[kind]
