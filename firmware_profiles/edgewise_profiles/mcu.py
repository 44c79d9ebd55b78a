"""What a microcontroller is to a profile: memory, serial port, compiler flags, and its checks."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

_KIB: Final = 1024
_ADDRESSES: Final = 1 << 32
_CORES: Final = {"armv7e-m": ("cortex-m4", "cortex-m7"), "armv8.1-m": ("cortex-m55", "cortex-m85")}
Flag = Annotated[str, Meta(pattern=r"^-m[a-z0-9.+=-]+$(?!\n)", max_length=64)]


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of a profile: immutable, every key known."""


class Region(Part, frozen=True, kw_only=True):
    """Memory of a microcontroller."""

    origin: Annotated[int, Meta(ge=0, lt=2**32)]
    kib: Annotated[int, Meta(ge=1, le=2**20)]


class Mcu(Part, frozen=True, kw_only=True):
    """A microcontroller: how firmware is built for it, and what it may take."""

    core: Annotated[str, Meta(pattern=r"^[a-z0-9-]+$(?!\n)", max_length=32)]
    flags: Annotated[tuple[Flag, ...], Meta(max_length=8)]
    """Of `arm-none-eabi-gcc`, that choose the processor."""
    flash: Region
    """Where code, constants and initial values lie."""
    ram: Region
    flash_kib: Annotated[int, Meta(ge=1, le=2**20)]
    """What firmware may take of the flash, model included."""
    ram_kib: Annotated[int, Meta(ge=1, le=2**20)]
    """What it may take of the memory: static, arena and stack included."""
    stack_kib: Annotated[int, Meta(ge=1, le=2**16)]
    """Reserved for the stack; the peak must stay below."""
    uart: Annotated[int, Meta(ge=0, lt=2**32)]
    """Address of the serial port, of Arm's CMSDK kind."""
    uart_irq: Annotated[int, Meta(ge=0, le=479)]
    """Of a byte that has come in."""
    clock_hz: Annotated[int, Meta(ge=1_000_000, le=10**10)]
    """Of the serial port."""
    baud: Annotated[int, Meta(ge=1200, le=10**7)] = 115200
    emulator: Annotated[str, Meta(pattern=r"^([a-z0-9][a-z0-9-]*)?$(?!\n)", max_length=64)] = ""
    """The machine's name as `qemu-system-arm -M` takes it; empty where there is none."""


def mcu_faults(mcu: Mcu, machine: str) -> tuple[str, ...]:
    """What contradicts itself in a microcontroller's table; empty when nothing does."""
    faults: list[str] = []
    if mcu.core not in _CORES.get(machine, ()):
        faults.append(f"mcu.core {mcu.core} is not of machine {machine}")
    if f"-mcpu={mcu.core}" not in mcu.flags:
        faults.append(f"mcu.flags do not choose the core: -mcpu={mcu.core} is missing")
    for name, region, allowed in (("flash", mcu.flash, mcu.flash_kib), ("ram", mcu.ram, mcu.ram_kib)):
        if allowed > region.kib:
            faults.append(f"mcu.{name}_kib is {allowed}; the board has {region.kib}")
        if region.origin + region.kib * _KIB > _ADDRESSES:
            faults.append(f"mcu.{name} does not end within 32 bits")
    if mcu.stack_kib >= mcu.ram_kib:
        faults.append(f"mcu.stack_kib is {mcu.stack_kib}, which leaves nothing of {mcu.ram_kib}")
    return tuple(faults)
