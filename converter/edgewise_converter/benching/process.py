"""A measured model's process, from outside: bounded waits, and a death that is told."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from types import TracebackType
from typing import Final, TypeVar

import msgspec

from edgewise_converter import errors
from edgewise_converter.benching.child import Failure, Loaded, Round, Task
from edgewise_converter.errors import ConverterError, EngineError

_CHILD: Final = "edgewise_converter.benching.child"
_LOAD_S: Final = 300.0
_SLACK_S: Final = 120.0
"""Beyond the seconds that it is to run: one call may be slow."""
_MAX_ANSWER: Final = 1 << 20
_TAIL: Final = 400
_KINDS: Final = {
    kind.code: kind
    for kind in (
        errors.EngineError,
        errors.ModelFileError,
        errors.SampleError,
        errors.MissingExtraError,
    )
}
T = TypeVar("T", Loaded, Round)


class BenchProcess:
    """A loaded model in a process of its own; a context, so that none stays behind.

    Args:
        task: what to load.
        name: what messages call it.

    Raises:
        EngineError, ModelFileError, SampleError, MissingExtraError: see there; also where the process dies.
    """

    def __init__(self, task: Task, name: str) -> None:
        self._name = name
        self._noise = os.fdopen(os.memfd_create("bench"), "w+b")
        self._held = b""
        self._child = subprocess.Popen(
            [sys.executable, "-B", "-P", "-m", _CHILD, msgspec.json.encode(task).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            cwd="/",
        )
        try:
            self.loaded = self._answer(Loaded, _LOAD_S)
        except BaseException:
            self.close()
            raise

    def run(self, seconds: float) -> Round:
        """Time calls for some seconds; raises `EngineError`."""
        assert self._child.stdin is not None  # noqa: S101 - for the type checker: it was opened as a pipe
        try:
            self._child.stdin.write(f"{seconds:.6f}\n".encode())
            self._child.stdin.flush()
        except OSError:
            pass  # it has ended; the answer, or its lack, says how
        return self._answer(Round, seconds + _SLACK_S)

    def _answer(self, kind: type[T], within_s: float) -> T:
        line = self._line(time.monotonic() + within_s, within_s)
        try:
            if line.startswith(b'{"code":'):
                failure = msgspec.json.decode(line, type=Failure)
                known: type[ConverterError] = _KINDS.get(failure.code, EngineError)
                raise known(f"{self._name}: {failure.text[:1500]}")
            return msgspec.json.decode(line, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise EngineError(f"{self._name}: its process gave no figures: {error}") from error

    def _line(self, deadline: float, within_s: float) -> bytes:
        assert self._child.stdout is not None  # noqa: S101 - as above
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            while b"\n" not in self._held:
                if len(self._held) > _MAX_ANSWER or not selector.select(max(0.0, deadline - time.monotonic())):
                    raise EngineError(f"{self._name}: no answer within {within_s:g} s; its process was ended")
                piece = os.read(self._child.stdout.fileno(), 1 << 16)
                if not piece:
                    raise EngineError(f"{self._name}: its process {self._death()}")
                self._held += piece
        line, _, self._held = self._held.partition(b"\n")
        return line

    def _death(self) -> str:
        code = self._child.wait(10)
        self._noise.seek(0, 2)
        self._noise.seek(max(0, self._noise.tell() - _TAIL))
        said = " ".join(self._noise.read().decode(errors="replace").split()) or "it printed nothing"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        return f"{how}: {said}"

    def close(self) -> None:
        """End the process."""
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._noise):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> BenchProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
