"""From an int8 TFLite file to a file of format `c99`: sources, and a measured firmware where the tools are there."""

from __future__ import annotations

from dataclasses import dataclass

from edgewise_profiles.schema import Profile
from edgewise_protocol.firmware import IMAGE_FILE, SPEC_VERSION, Firmware, FirmwareTensor, pack

from edgewise_converter.c99.assembly import firmware_sources, identity
from edgewise_converter.c99.budget import Figure, figures, hold
from edgewise_converter.c99.elf import footprint
from edgewise_converter.c99.emulator import has_emulator, run_image
from edgewise_converter.c99.graph import Tensor
from edgewise_converter.c99.link import FirmwareRunError
from edgewise_converter.c99.source import Sources, generate
from edgewise_converter.c99.toolchain import compile_firmware


@dataclass(frozen=True, slots=True)
class Built:
    """A file of format `c99`, and what is known of it.

    Attributes:
        data: the file.
        sources: the model's.
        firmware: the file's description.
        figures: what the image takes; empty without one.
    """

    data: bytes
    sources: Sources
    firmware: Firmware
    figures: tuple[Figure, ...]


def build(tflite: bytes, profile: Profile | None, *, image: bool, name: str = "the model") -> Built:
    """Generate sources; build, hold against the budget and measure a firmware.

    Equal inputs give equal bytes, as far as compiler and emulator are of the same version.

    Args:
        tflite: an int8 file.
        profile: the board; None for sources of a program of a system with files.
        image: whether to build the firmware. Its stack is measured where there is an emulator.
        name: of the model, for messages.

    Raises:
        ModelFileError, UnsupportedModelError: the model cannot become C99.
        ToolchainError: it was to be built, and cannot be.
        FirmwareBudgetError: it takes more than the board's profile allows.
        FirmwareRunError: the firmware does not run in the emulator.
    """
    sources = generate(tflite, name)
    mcu = None if profile is None else profile.mcu
    members = firmware_sources(sources, mcu)
    firmware = Firmware(
        spec_version=SPEC_VERSION,
        identity=identity(sources),
        inputs=_tensors(sources.inputs, sources.input_names),
        outputs=_tensors(sources.outputs, sources.output_names),
        arena_bytes=sources.arena_bytes,
    )
    if profile is None or mcu is None or not image:
        return Built(pack(firmware, members), sources, firmware, ())
    elf = compile_firmware(members, mcu)
    takes = footprint(elf)
    known = figures(mcu, flash=takes.flash, ram=takes.ram, arena=sources.arena_bytes, stack=None)
    hold(profile.id, known)
    stack = 0
    if mcu.emulator and has_emulator():
        hello, _, measured = run_image(elf, mcu, [bytes(sum(tensor.size for tensor in sources.inputs))])
        if hello.identity != firmware.identity:
            raise FirmwareRunError(f"the firmware on {mcu.emulator} is not the one that was built")
        stack = measured.stack_peak
        known = figures(mcu, flash=takes.flash, ram=takes.ram, arena=sources.arena_bytes, stack=stack)
        hold(profile.id, known)
    described = Firmware(
        spec_version=SPEC_VERSION,
        identity=firmware.identity,
        inputs=firmware.inputs,
        outputs=firmware.outputs,
        arena_bytes=firmware.arena_bytes,
        board=profile.id,
        image=IMAGE_FILE,
        flash_bytes=takes.flash,
        ram_bytes=takes.ram,
        stack_bytes=stack,
    )
    return Built(pack(described, {**members, IMAGE_FILE: elf}), sources, described, known)


def _tensors(tensors: tuple[Tensor, ...], names: tuple[str, ...]) -> tuple[FirmwareTensor, ...]:
    return tuple(
        FirmwareTensor(
            name=(name or f"tensor{i}")[:200], shape=tensor.shape, scale=tensor.scale, zero_point=tensor.zero_point
        )
        for i, (name, tensor) in enumerate(zip(names, tensors, strict=True))
    )
