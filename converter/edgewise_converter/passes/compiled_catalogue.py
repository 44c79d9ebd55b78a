"""The passes that compile a model ahead of time, and their settings."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from edgewise_profiles.schema import Machine
from msgspec import Meta

from edgewise_converter.passes.entry import PassEntry


class IreeCompileConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ONNX to native code by IREE."""

    machine: Machine
    features: tuple[str, ...] = ()
    """LLVM's names of what the processor has, see `iree_target.features_of`."""
    opset: Annotated[int, Meta(ge=17, le=23)] | None = 20
    """The graph is lifted to it first; None leaves it."""


class C99GenerateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Full int8 TFLite to C99 for a microcontroller."""

    board: Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$", max_length=64)] = ""
    """Profile of the board that the firmware is built for; empty: sources of a program for a system with files."""
    image: Literal["auto", "always", "never"] = "auto"
    """Whether to build the firmware; `auto`: where `arm-none-eabi-gcc` is installed."""


ENTRIES: Final[tuple[PassEntry, ...]] = (
    PassEntry(
        "iree_compile", "ONNX to native code by IREE", "onnx", "vmfb", None, IreeCompileConfig, ("iree-base-compiler",)
    ),
    PassEntry(
        "c99_generate",
        "int8 TFLite to C99 for a microcontroller",
        "tflite",
        "c99",
        "int8",
        C99GenerateConfig,
        ("ai-edge-litert",),
    ),
)
