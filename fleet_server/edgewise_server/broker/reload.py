"""Tells Mosquitto to read its certificates, revocation list and access list again.

On SIGHUP Mosquitto 2.0 makes its TLS context anew: CA, certificate, key and CRL are all reloaded, and every later
handshake is held against them [seen with 2.0.11]. Open connections stay open; see `eviction`.

A Mosquitto that has only just been started does not catch the signal yet, and would be ended by it.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

_PROGRAM: Final = "mosquitto"
_MAX_PID_BYTES: Final = 32
STARTING_S: Final = 5.0
"""Longest wait for a starting Mosquitto to catch SIGHUP."""
_LOOK_S: Final = 0.02


def reload_mosquitto(pid_file: Path) -> str:
    """Send SIGHUP to the process of a pid file, if it is a Mosquitto; why not, or an empty string."""
    try:
        with pid_file.open("rb") as file:
            pid = int(file.read(_MAX_PID_BYTES))
    except FileNotFoundError:
        return f"Mosquitto does not run here: there is no {pid_file}"
    except (OSError, ValueError) as error:
        return f"{pid_file} cannot be read: {error}"
    if pid <= 1:
        return f"{pid_file} does not hold the id of a process"
    try:
        # The id may have been given to another process since: a pidfd stays with the one that was looked at.
        descriptor = os.pidfd_open(pid)
    except OSError as error:
        return f"the process {pid} of {pid_file} is not there: {error.strerror}"
    try:
        program = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
        if program != _PROGRAM:
            return f"the process {pid} of {pid_file} is {program!r}, not {_PROGRAM}"
        deadline = time.monotonic() + STARTING_S
        while not _catches_sighup(pid):
            if time.monotonic() > deadline:
                return f"Mosquitto ({pid}) does not catch SIGHUP, which would end it"
            time.sleep(_LOOK_S)
        signal.pidfd_send_signal(descriptor, signal.SIGHUP)
    except OSError as error:
        return f"Mosquitto ({pid}) cannot be told to read its files again: {error.strerror}"
    finally:
        os.close(descriptor)
    return ""


def _catches_sighup(pid: int) -> bool:
    """Whether a process has a handler for SIGHUP (proc(5), `SigCgt`: bit n - 1 stands for signal n)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (signal.SIGHUP - 1) & 1)
