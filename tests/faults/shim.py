"""Builds the fault shim and speaks to it: see `shim.c` for what it counts."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path
from typing import Literal

SOURCE = Path(__file__).with_name("shim.c")
Mode = Literal["count", "kill", "torn", "full", "once"]
MODES: tuple[Mode, ...] = ("count", "kill", "torn", "full", "once")
"""In the order of `enum mode` in shim.c."""


def build(folder: Path) -> Path:
    """The shared library, compiled into a folder."""
    library = folder / "shim.so"
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(library), str(SOURCE), "-ldl"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise AssertionError(f"the fault shim does not compile (apt install gcc libc6-dev): {made.stderr}")
    return library


class Shim:
    """The library that this process was started with in LD_PRELOAD."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self._library.ew_arm.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int)
        self._library.ew_counted.restype = ctypes.c_long

    def arm(self, folder: Path, mode: Mode, point: int, log: int = -1) -> None:
        """Count below a folder from now on, and let `mode` happen at the operation number `point`, from 1."""
        if self._library.ew_arm(os.fsencode(folder.resolve()), MODES.index(mode), point, log):
            raise ValueError(f"{folder} is too long")

    def heal(self) -> None:
        """The disk is well again. Operations are counted on, and not synced: nothing cuts the power here."""
        self._library.ew_heal()

    def disarm(self) -> None:
        """This process is none of the harness's business any more."""
        self._library.ew_disarm()

    @property
    def counted(self) -> int:
        return int(self._library.ew_counted())
