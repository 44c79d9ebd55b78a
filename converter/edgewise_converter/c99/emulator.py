"""Running a firmware image in `qemu-system-arm`: it proves loading, numbers and the stack, never latency."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edgewise_profiles.mcu import Mcu
from edgewise_protocol.firmware import Firmware
from edgewise_protocol.frames import Hello, Stats

from edgewise_converter.c99.link import FirmwareRunError, ProcessLink

EMULATOR: Final = "qemu-system-arm"
PACKAGE: Final = "qemu-system-arm"
ANSWER_S: Final = 120.0


def has_emulator() -> bool:
    """Whether images can be run here."""
    return shutil.which(EMULATOR) is not None


@contextmanager
def emulated(image: bytes, mcu: Mcu, firmware: Firmware | None = None) -> Iterator[ProcessLink]:
    """A board with an image on it, which is held to what the firmware must be, where that is given.

    Raises:
        FirmwareRunError: there is no emulator, or none of the board.
    """
    if not mcu.emulator:
        raise FirmwareRunError("the profile names no emulator of its board")
    if not has_emulator():
        raise FirmwareRunError(f"{EMULATOR} is not installed: apt install {PACKAGE}")
    with tempfile.TemporaryDirectory(prefix="edgewise-board-") as folder:
        file = Path(folder) / "firmware.elf"
        file.write_bytes(image)
        with ProcessLink(command(str(file), mcu), f"the firmware on {mcu.emulator}", ANSWER_S, firmware) as link:
            yield link


def command(image: str, mcu: Mcu) -> list[str]:
    """What starts the board, its serial port on standard input and output.

    Time goes by instructions, not by the host.
    """
    machine = ["-M", mcu.emulator, "-accel", "tcg,tb-size=32", "-icount", "shift=0"]
    nothing = ["-display", "none", "-monitor", "none", "-nic", "none"]
    return [EMULATOR, *machine, *nothing, "-serial", "stdio", "-kernel", image]


def run_image(
    image: bytes, mcu: Mcu, requests: Iterable[bytes], firmware: Firmware | None = None
) -> tuple[Hello, list[bytes], Stats]:
    """Answer requests on an emulated board.

    Args:
        image: an ELF file.
        mcu: the board.
        requests: int8 inputs of each, one tensor after another.
        firmware: what the image must be, see `ProcessLink`.

    Returns:
        its greeting, its answers, and what it measured, the stack's peak among it.

    Raises:
        FirmwareRunError: it does not run, or does not answer.
    """
    with emulated(image, mcu, firmware) as link:
        hello = link.hello()
        answers = [link.invoke(request) for request in requests]
        return hello, answers, link.stats()
