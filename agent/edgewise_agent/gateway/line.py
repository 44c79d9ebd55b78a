"""Bytes to and from a board: a serial device, or a command whose standard input and output are the line."""

from __future__ import annotations

import os
import select
import subprocess
import termios
import time
from collections.abc import Sequence
from typing import Final

from edgewise_agent.gateway.errors import BoardLinkError

_READ: Final = 1 << 16
_WRITE: Final = 4096
_END_S: Final = 5.0


class Line:
    """An open line. One thread at a time.

    Args:
        reading, writing: descriptors; they belong to the line from now on, and may be the same.
        what: for messages.
        process: the command behind it, if there is one.
    """

    def __init__(self, reading: int, writing: int, what: str, process: subprocess.Popen[bytes] | None = None) -> None:
        self._reading, self._writing, self._what, self._process = reading, writing, what, process
        for descriptor in {reading, writing}:
            os.set_blocking(descriptor, False)

    def exchange(self, out: memoryview, deadline: float) -> tuple[memoryview, bytes]:
        """Send some of `out` and read what is there; what is left of `out`, and at least one byte.

        Raises:
            BoardLinkError: nothing came until the deadline (`time.monotonic`), or the line broke.
        """
        while True:
            wait = deadline - time.monotonic()
            if wait <= 0:
                raise BoardLinkError(f"{self._what} does not answer")
            try:
                readable, writable, _ = select.select(
                    [self._reading], [self._writing] if len(out) else [], [], max(0.0, wait)
                )
                if writable:
                    out = out[os.write(self._writing, out[:_WRITE]) :]
                if readable:
                    data = os.read(self._reading, _READ)
                    if not data:
                        raise BoardLinkError(f"{self._what} has ended")
                    return out, data
            except BlockingIOError:
                continue
            except (OSError, ValueError) as error:
                raise BoardLinkError(f"the line to {self._what} broke: {error}") from error

    def send(self, out: bytes, deadline: float) -> None:
        """Send all, and throw away what comes meanwhile; raises `BoardLinkError`."""
        left = memoryview(out)
        while len(left):
            wait = deadline - time.monotonic()
            if wait <= 0:
                raise BoardLinkError(f"{self._what} takes nothing")
            try:
                readable, writable, _ = select.select([self._reading], [self._writing], [], wait)
                if writable:
                    left = left[os.write(self._writing, left[:_WRITE]) :]
                if readable and not os.read(self._reading, _READ):
                    raise BoardLinkError(f"{self._what} has ended")
            except BlockingIOError:
                continue
            except (OSError, ValueError) as error:
                raise BoardLinkError(f"the line to {self._what} broke: {error}") from error

    def close(self) -> None:
        """Close the descriptors and end the command."""
        for descriptor in {self._reading, self._writing}:
            os.close(descriptor)
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(_END_S)


def open_serial(device: str, baud: int) -> Line:
    """A serial device: eight bits, no parity, one stop bit, no flow control.

    Raises:
        BoardLinkError: it cannot be opened, or has no such speed.
    """
    speed = getattr(termios, f"B{baud}", None)
    if speed is None:
        raise BoardLinkError(f"{device} has no speed of {baud} baud")
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BoardLinkError(f"{device} cannot be opened: {error.strerror}") from error
    try:
        flags = termios.CS8 | termios.CREAD | termios.CLOCAL
        characters = termios.tcgetattr(descriptor)[6]
        characters[termios.VMIN], characters[termios.VTIME] = b"\x00", b"\x00"
        termios.tcsetattr(descriptor, termios.TCSANOW, [0, 0, flags, 0, speed, speed, characters])
        termios.tcflush(descriptor, termios.TCIOFLUSH)
    except (termios.error, OSError) as error:
        os.close(descriptor)
        raise BoardLinkError(f"{device} is no serial device: {error}") from error
    return Line(descriptor, descriptor, f"the board at {device}")


def open_command(command: Sequence[str]) -> Line:
    """A command as the line; raises `BoardLinkError` if it cannot be started."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
    except (OSError, ValueError) as error:
        raise BoardLinkError(f"{command[0]} cannot be started: {error}") from error
    if process.stdin is None or process.stdout is None:
        raise BoardLinkError(f"{command[0]} has no line")
    reading, writing = os.dup(process.stdout.fileno()), os.dup(process.stdin.fileno())
    process.stdin.close()
    process.stdout.close()
    return Line(reading, writing, f"the board behind {command[0]}", process)
