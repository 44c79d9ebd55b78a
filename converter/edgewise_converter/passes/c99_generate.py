"""Full int8 TFLite to C99 for a microcontroller, with a firmware image where the tools for it are installed.

The host cannot run the image; the same sources built for the host stand in, or, without a compiler, LiteRT.
"""

from __future__ import annotations

from edgewise_profiles import catalogue
from edgewise_profiles.errors import ProfileError
from edgewise_protocol.firmware import FirmwareTensor
from edgewise_protocol.manifest import TensorSpec

from edgewise_converter.c99.building import build
from edgewise_converter.c99.toolchain import has_cross_compiler
from edgewise_converter.errors import PassError
from edgewise_converter.passes.artifact import Artifact, Materials, Signature
from edgewise_converter.passes.compiled_catalogue import C99GenerateConfig


def apply(materials: Materials, before: Artifact, config: C99GenerateConfig) -> Artifact:
    """Generate C99; build, measure and hold a firmware against the board's budget.

    Raises:
        UnsupportedModelError: an operator or tensor has no C99 here; the message names it and what to do.
        FirmwareBudgetError: the firmware takes more than the board's profile allows.
        ToolchainError: an image was asked for and cannot be built.
        PassError: there is no such board.
    """
    try:
        profile = catalogue.load(config.board) if config.board else None
    except ProfileError as error:
        raise PassError(str(error)) from error
    if profile is not None and profile.mcu is None:
        raise PassError(f"{profile.id} is no microcontroller: its models need no C99")
    image = profile is not None and (config.image == "always" or (config.image == "auto" and has_cross_compiler()))
    built = build(before.data, profile, image=image, name=materials.model)
    signature = Signature(_specs(built.firmware.inputs), _specs(built.firmware.outputs))
    return Artifact(built.data, "c99", "int8", signature, before)


def _specs(tensors: tuple[FirmwareTensor, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=tensor.name, dtype="FP32", shape=tensor.shape) for tensor in tensors)
