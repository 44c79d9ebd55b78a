"""Compilers, called with nothing of this machine in what they make: no paths, no dates, no build ids."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from edgewise_profiles.mcu import Mcu

from edgewise_converter.errors import PassError

CROSS: Final = "arm-none-eabi-gcc"
PACKAGES: Final = "gcc-arm-none-eabi libnewlib-arm-none-eabi"
"""Of Debian, with the cross compiler."""
_SECONDS: Final = 300
_COMMON: Final = (
    "-std=c99",
    "-pedantic",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-O2",
    "-fwrapv",
    "-fno-ident",
    "-ffunction-sections",
    "-fdata-sections",
    "-Wl,--gc-sections",
    "-Wl,--build-id=none",
)
_KIB: Final = 1024


class ToolchainError(PassError):
    """A compiler is not installed, or refuses what it was given."""

    code = "toolchain"


def has_cross_compiler() -> bool:
    """Whether firmware can be built here."""
    return shutil.which(CROSS) is not None


def has_host_compiler() -> bool:
    """Whether programs for this host can be built here."""
    return shutil.which("gcc") is not None


def compile_firmware(sources: Mapping[str, bytes], mcu: Mcu) -> bytes:
    """An ELF image for a microcontroller, without symbols.

    Args:
        sources: C files, headers and `firmware.ld`.
        mcu: what it is for.

    Raises:
        ToolchainError: the compiler is missing, or the program does not go into the memory.
    """
    if not has_cross_compiler():
        raise ToolchainError(f"{CROSS} is not installed: apt install {PACKAGES}")
    settings = {
        "BOARD_UART": f"{mcu.uart:#x}u",
        "BOARD_UART_IRQ": f"{mcu.uart_irq}u",
        "BOARD_CLOCK": f"{mcu.clock_hz}u",
        "BOARD_BAUD": f"{mcu.baud}u",
    }
    flags = [*mcu.flags, "-nostartfiles", "--specs=nosys.specs", "-Wl,-T,firmware.ld", "-s"]
    return _compile(CROSS, sources, [*flags, *(f"-D{name}={value}" for name, value in settings.items())])


def compile_program(sources: Mapping[str, bytes], compiler: str = "gcc", flags: Sequence[str] = ()) -> bytes:
    """The same firmware as a program of a system with files: its line is standard input and output.

    Args:
        sources: C files and headers.
        compiler: gcc of that system, e.g. `riscv64-linux-gnu-gcc`.
        flags: of its own.

    Raises:
        ToolchainError: the compiler is missing or refuses.
    """
    if shutil.which(compiler) is None:
        raise ToolchainError(f"{compiler} is not installed")
    return _compile(compiler, sources, [*flags, "-s"])


def linker_script(mcu: Mcu) -> bytes:
    """Where everything lies. The stack is the lowest of the memory: beyond it there is nothing, so that it faults."""
    return f"""MEMORY
{{
  FLASH (rx) : ORIGIN = {mcu.flash.origin:#010x}, LENGTH = {mcu.flash.kib * _KIB}
  RAM (rwx) : ORIGIN = {mcu.ram.origin:#010x}, LENGTH = {mcu.ram.kib * _KIB}
}}
ENTRY(reset)
SECTIONS
{{
  .text : {{ KEEP(*(.vectors)) *(.text*) *(.rodata*) . = ALIGN(4); }} > FLASH
  .ARM.exidx : {{ *(.ARM.exidx*) *(.ARM.extab*) . = ALIGN(4); }} > FLASH
  .stack (NOLOAD) : {{ stack_bottom = .; . += {mcu.stack_kib * _KIB}; stack_top = .; }} > RAM
  .data : {{ . = ALIGN(4); data_start = .; *(.data*) . = ALIGN(4); data_end = .; }} > RAM AT > FLASH
  data_load = LOADADDR(.data);
  .bss (NOLOAD) : {{ . = ALIGN(4); bss_start = .; *(.bss*) *(COMMON) . = ALIGN(4); bss_end = .; }} > RAM
  end = .;
}}
""".encode()


def _compile(compiler: str, sources: Mapping[str, bytes], flags: Sequence[str]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="edgewise-c99-") as name:
        folder = Path(name)
        for file, data in sources.items():
            (folder / file).write_bytes(data)
        units = sorted(file for file in sources if file.endswith(".c"))
        command = [compiler, *_COMMON, *flags, "-o", "image", *units]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ToolchainError(f"{compiler} did not end within {_SECONDS} s") from error
        except OSError as error:
            raise ToolchainError(f"{compiler} cannot be started: {error.strerror}") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            worst = next((line for line in said if "error" in line or "overflowed" in line), said[0] if said else "")
            raise ToolchainError(f"{compiler} refuses the program: {worst[:400]}")
        return (folder / "image").read_bytes()
