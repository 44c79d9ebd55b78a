"""A conversation with a firmware that runs as a child process: on this host, or in an emulator."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Final

from edgewise_protocol.errors import MalformedError
from edgewise_protocol.firmware import Firmware
from edgewise_protocol.frames import (
    ANSWER,
    HELLO,
    INVOKE,
    MAX_HELLO,
    MAX_PAYLOAD,
    PROTOCOL,
    REFUSAL,
    STATS,
    Decoder,
    Frame,
    Hello,
    Stats,
    encode,
    parse_hello,
    parse_stats,
    refusal,
)

from edgewise_converter.errors import EngineError

_READ: Final = 1 << 16
_TAIL: Final = 400
_KILL_S: Final = 5.0


class FirmwareRunError(EngineError):
    """A firmware does not answer, or answers what it must not."""

    code = "firmware-run"


class ProcessLink:
    """Talks with a process over its standard input and output; use it with `with`.

    Args:
        command: what to start.
        what: for messages.
        timeout_s: for one answer.
        firmware: what it must be. Its greeting is held against it, and so is each answer's length; longer frames
            are not waited for. Without, nothing is known of it.

    Raises:
        FirmwareRunError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], what: str, timeout_s: float, firmware: Firmware | None = None) -> None:
        self._what, self._timeout_s, self._firmware = what, timeout_s, firmware
        self._decoder, self._sequence = Decoder(_longest(firmware)), 0
        self._noise: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._noise, bufsize=0
            )
        except OSError as error:
            self._noise.close()
            raise FirmwareRunError(f"{what} cannot be started: {error.strerror}") from error
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)

    def __enter__(self) -> ProcessLink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def hello(self) -> Hello:
        """The firmware's greeting; raises `FirmwareRunError`, also if it is another firmware's."""
        try:
            found = parse_hello(self._ask(HELLO, b""))
        except MalformedError as error:
            raise FirmwareRunError(f"{self._what}: {error}") from error
        if self._firmware is not None and (why := _differs(found, self._firmware)):
            raise FirmwareRunError(f"{self._what} is not the one that it should be: {why}")
        return found

    def invoke(self, inputs: bytes) -> bytes:
        """The model's outputs, one after another, for its inputs; raises `FirmwareRunError`."""
        answer = self._ask(INVOKE, inputs)
        wanted = len(answer) if self._firmware is None else sum(tensor.size for tensor in self._firmware.outputs)
        if len(answer) != wanted:
            raise FirmwareRunError(f"{self._what} answered {len(answer)} bytes; the model's outputs have {wanted}")
        return answer

    def stats(self) -> Stats:
        """What the firmware has measured; raises `FirmwareRunError`."""
        try:
            return parse_stats(self._ask(STATS, b""))
        except MalformedError as error:
            raise FirmwareRunError(f"{self._what}: {error}") from error

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        try:
            self._process.wait(_KILL_S)
        finally:
            for pipe in (self._process.stdin, self._process.stdout, self._noise):
                if pipe is not None:
                    pipe.close()

    def _ask(self, kind: int, payload: bytes) -> bytes:
        self._sequence = (self._sequence + 1) & 0xFF
        deadline = time.monotonic() + self._timeout_s
        left = memoryview(encode(Frame(kind, self._sequence, payload)))
        try:
            while True:
                for frame in self._exchange(left, deadline):
                    if frame.sequence != self._sequence:
                        continue
                    if frame.kind == kind | ANSWER:
                        return frame.payload
                    if frame.kind == REFUSAL:
                        raise FirmwareRunError(f"{self._what}: {refusal(frame.payload)}")
                left = left[len(left) :]
        except MalformedError as error:
            raise FirmwareRunError(f"{self._what}: {error}") from error

    def _exchange(self, left: memoryview, deadline: float) -> list[Frame]:
        """Send what is left, and read until there is a frame."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise FirmwareRunError(f"{self._what} has no line")
        while True:
            wait = deadline - time.monotonic()
            if wait <= 0:
                raise FirmwareRunError(f"{self._what} did not answer within {self._timeout_s:g} s{self._tail()}")
            readable, writable, _ = select.select([stdout], [stdin] if len(left) else [], [], wait)
            try:
                if writable:
                    left = left[os.write(stdin.fileno(), left[:4096]) :]
                if readable:
                    data = os.read(stdout.fileno(), _READ)
                    if not data:
                        raise FirmwareRunError(f"{self._what} ended{self._tail()}")
                    if frames := self._decoder.feed(data):
                        return frames
            except BlockingIOError:
                continue
            except OSError as error:
                raise FirmwareRunError(f"{self._what}: the line broke: {error.strerror}{self._tail()}") from error

    def _tail(self) -> str:
        self._noise.seek(0)
        text = " ".join(self._noise.read(_READ).decode(errors="replace").split())[-_TAIL:]
        return f": {text}" if text else ""


def _longest(firmware: Firmware | None) -> int:
    """Bytes of the longest payload that is believed."""
    if firmware is None:
        return MAX_PAYLOAD
    return min(MAX_PAYLOAD, max(MAX_HELLO, sum(tensor.size for tensor in firmware.outputs)))


def _differs(found: Hello, wanted: Firmware) -> str:
    """How a greeting is not that of a firmware, in words; empty where it is."""
    if found.protocol != PROTOCOL:
        return f"it speaks version {found.protocol}, not {PROTOCOL}"
    if found.identity != wanted.identity:
        return f"it names the model {found.identity[:12]}, not {wanted.identity[:12]}"
    for what, sizes, tensors in (("inputs", found.inputs, wanted.inputs), ("outputs", found.outputs, wanted.outputs)):
        if sizes != tuple(tensor.size for tensor in tensors):
            return f"its {what} have {list(sizes)} bytes, not {[tensor.size for tensor in tensors]}"
    return ""
