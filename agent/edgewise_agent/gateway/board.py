"""The board behind a gateway: one firmware at a time, one conversation at a time, tried again within bounds."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edgewise_protocol.errors import MalformedError
from edgewise_protocol.firmware import FirmwareFile
from edgewise_protocol.frames import (
    ANSWER,
    HELLO,
    INVOKE,
    MAX_HELLO,
    OVERHEAD,
    PROTOCOL,
    REFUSAL,
    REFUSALS,
    Decoder,
    Frame,
    Hello,
    encode,
    parse_hello,
    refusal,
)

from edgewise_agent.config import GatewayConfig
from edgewise_agent.gateway.errors import BoardBusyError, BoardFirmwareError, BoardLinkError, BoardRefusedError
from edgewise_agent.gateway.line import Line, open_command, open_serial

_IMAGE: Final = "{image}"
_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 5.0
_POLL_S: Final = 0.05
_HELLO_S: Final = 5.0
"""For a greeting, which takes the board no time."""
_BOOT_S: Final = 15.0
"""From the end of writing until the firmware greets."""
_BOOT_HELLO_S: Final = 0.3
_DAMAGED: Final = REFUSALS[1]


class Board:
    """A bundle's firmware on the board. One thread at a time.

    Where the command starts a board of its own for each image (an emulator), several may run side
    by side; a real board is locked while it is talked to, and given the firmware when it runs another.

    Args:
        config: how the board is reached.
        file: the bundle's model file.
        hold: keep the board for as long as this is open, as a self-test does.

    Raises:
        BoardFirmwareError: the bundle holds no firmware image for this board.
    """

    def __init__(self, config: GatewayConfig, file: FirmwareFile, *, hold: bool = False) -> None:
        self._config, self._firmware, self._hold = config, file.firmware, hold
        if file.image is None:
            raise BoardFirmwareError("the bundle holds sources alone: convert it where the cross compiler is installed")
        if file.firmware.board != config.board:
            raise BoardFirmwareError(f"the firmware is for {file.firmware.board}; this board is {config.board}")
        self._own = bool(config.command) and _IMAGE in config.command
        self._name = hashlib.sha256(f"{config.device}\0{config.command}".encode()).hexdigest()[:16]
        self._folder = tempfile.TemporaryDirectory(prefix="edgewise-board-")
        self._image = Path(self._folder.name) / file.firmware.image
        self._image.write_bytes(file.image)
        # A program of this machine may stand in for the board.
        self._image.chmod(0o700)
        self._line: Line | None = None
        # Longer frames are not waited for: a board that claims them would keep this busy.
        self._longest = max(MAX_HELLO, sum(tensor.size for tensor in file.firmware.outputs))
        self._decoder, self._sequence = Decoder(self._longest), os.urandom(1)[0]
        self._lock: int | None = None
        self._greeted = False

    @property
    def shared(self) -> str:
        """Names the board where there is but one, which every open firmware shares; else empty."""
        return "" if self._own else self._name

    def invoke(self, inputs: bytes) -> bytes:
        """The model's outputs for its inputs, tensor after tensor.

        Raises:
            BoardLinkError: the board did not answer, as often as it was tried.
            BoardRefusedError: it answers that it will not.
            BoardFirmwareError: it runs another firmware and cannot be given this one.
            BoardBusyError: somebody else has it.
        """
        with self._taken():
            wait = _FIRST_WAIT_S
            for attempt in range(1, self._config.attempts + 1):
                try:
                    self._prepare(attempt)
                    return self._ask(INVOKE, inputs, self._config.timeout_s)
                except BoardLinkError as error:
                    self._drop()
                    if attempt == self._config.attempts:
                        raise BoardLinkError(f"{error} ({attempt} tries)") from error
                    time.sleep(wait)
                    wait = min(2 * wait, _LONGEST_WAIT_S)
        raise BoardLinkError("the board was not tried")

    def close(self) -> None:
        """Let go of the line and the board."""
        self._drop()
        self._unlock()
        self._folder.cleanup()

    @contextmanager
    def _taken(self) -> Iterator[None]:
        self._take()
        try:
            yield
        finally:
            if not self._hold:
                self._unlock()

    def _prepare(self, attempt: int) -> None:
        """Open the line, and see that the firmware at its other end is the bundle's."""
        if self._line is None:
            self._line = self._open()
            if attempt > 1 and not self._own:
                # What was broken off in the middle is filled up, so that the board begins a new frame.
                filling = bytes(sum(tensor.size for tensor in self._firmware.inputs) + OVERHEAD)
                self._line.send(filling, time.monotonic() + self._config.timeout_s)
        if self._greeted:
            return
        last = attempt == self._config.attempts
        try:
            found: Hello | None = self._hello()
        except (BoardLinkError, BoardRefusedError):
            if self._own or not self._config.flash or not last:
                raise
            # An empty board says nothing, one with foreign firmware who knows what.
            found = None
        if found is None or found.identity != self._firmware.identity:
            self._flash(found)
        # A board that only this process has stays as it is; others may be given another firmware meanwhile.
        self._greeted = self._own or self._hold

    def _hello(self, timeout_s: float = _HELLO_S) -> Hello:
        try:
            found = parse_hello(self._ask(HELLO, b"", min(self._config.timeout_s, timeout_s)))
        except MalformedError as error:
            raise BoardLinkError(f"the board does not speak as it should: {error}") from error
        if found.protocol != PROTOCOL:
            raise BoardFirmwareError(f"the firmware speaks version {found.protocol}; this agent speaks {PROTOCOL}")
        return found

    def _flash(self, found: Hello | None) -> None:
        there = "nothing" if found is None else f"firmware {found.identity[:12]}"
        if not self._config.flash or self._own:
            raise BoardFirmwareError(
                f"the board runs {there}, not {self._firmware.identity[:12]}: set gateway.flash to the command that "
                "writes an image to it"
            )
        self._drop()
        command = _command(self._config.flash, self._image)
        try:
            done = subprocess.run(
                command, capture_output=True, stdin=subprocess.DEVNULL, timeout=self._config.flash_s, check=False
            )
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise BoardFirmwareError(f"the firmware cannot be written: {error}") from error
        if done.returncode != 0:
            said = " ".join(done.stderr.decode(errors="replace").split())[-300:]
            raise BoardFirmwareError(f"the firmware cannot be written: {command[0]} says {said or 'nothing'}")
        now = self._awake()
        if now.identity != self._firmware.identity:
            raise BoardFirmwareError(f"the board runs firmware {now.identity[:12]} after it was written")

    def _awake(self) -> Hello:
        """The greeting of a board that has just been written, and may still be starting."""
        deadline = time.monotonic() + _BOOT_S
        while True:
            self._line = self._open()
            try:
                return self._hello(_BOOT_HELLO_S)
            except BoardLinkError:
                self._drop()
                if time.monotonic() >= deadline:
                    raise

    def _open(self) -> Line:
        self._decoder = Decoder(self._longest)
        if self._config.device:
            return open_serial(self._config.device, self._config.baud)
        return open_command(_command(self._config.command, self._image))

    def _drop(self) -> None:
        self._greeted = False
        if self._line is not None:
            line, self._line = self._line, None
            line.close()

    def _ask(self, kind: int, payload: bytes, timeout_s: float) -> bytes:
        if self._line is None:
            raise BoardLinkError("the line is closed")
        self._sequence = (self._sequence + 1) & 0xFF
        left = memoryview(encode(Frame(kind, self._sequence, payload)))
        deadline = time.monotonic() + timeout_s
        while True:
            left, data = self._line.exchange(left, deadline)
            for frame in self._decoder.feed(data):
                if frame.sequence != self._sequence:
                    continue
                if frame.kind == kind | ANSWER:
                    return frame.payload
                if frame.kind == REFUSAL:
                    why = refusal(frame.payload)
                    raise BoardLinkError(why) if why == _DAMAGED else BoardRefusedError(f"the board refuses: {why}")

    def _take(self) -> None:
        """Lock the board against other processes and engines of this agent."""
        if self._own or self._lock is not None:
            return
        path = Path(tempfile.gettempdir()) / f"edgewise-board-{self._name}.lock"
        deadline = time.monotonic() + self._config.busy_s
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BoardBusyError(f"the board cannot be locked: {error.strerror}") from error
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    raise BoardBusyError(f"the board was not free within {self._config.busy_s:g} s") from None
                time.sleep(_POLL_S)
            else:
                self._lock = descriptor
                return

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
            # Others may now talk to the board: the line is not kept.
            self._drop()


def _command(text: str, image: Path) -> list[str]:
    return [part.replace(_IMAGE, str(image)) for part in shlex.split(text)]
