"""A program run within bounds: of time, of what it prints, of what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

TAIL: Final = 4000
_PIECE: Final = 1 << 16
_TO_DIE_S: Final = 10.0


class Done(NamedTuple):
    """How a program ended."""

    status: int
    """Negative: killed by that signal."""
    output: bytes
    log: str
    """The end of what it printed on its error stream."""
    timed_out: bool = False


def run(
    command: Sequence[str],
    *,
    data: bytes = b"",
    limit_s: float,
    max_output: int = 0,
    environment: Mapping[str, str] | None = None,
    folder: str = "/",
    tell: Callable[[str], None] | None = None,
) -> Done:
    """Run a program to its end, in a session of its own, which is killed where this is left early.

    Args:
        command: the program and its arguments.
        data: its standard input.
        limit_s: after which it is killed.
        max_output: bytes of its standard output that are kept; more make it fail.
        environment: its own; this process's by default.
        folder: that it is started in.
        tell: called with each line of its error stream.

    Raises:
        OSError: it cannot be started.
    """
    with os.fdopen(os.memfd_create("in"), "w+b") as given, os.fdopen(os.memfd_create("out"), "w+b") as taken:
        given.write(data)
        given.seek(0)
        deadline = time.monotonic() + limit_s
        child = subprocess.Popen(
            list(command),
            stdin=given,
            stdout=taken,
            stderr=subprocess.PIPE,
            env=None if environment is None else dict(environment),
            start_new_session=True,
            cwd=folder,
        )
        ended, log = False, ""
        try:
            log, ended = _listen(child, deadline, tell)
        finally:
            _end(child)
        taken.seek(0)
        output = taken.read(max_output + 1)
    if len(output) > max_output:
        return Done(child.returncode or 1, b"", f"{log}\nit wrote more than {max_output} bytes", not ended)
    return Done(child.returncode, output, log, not ended)


def _listen(child: subprocess.Popen[bytes], deadline: float, tell: Callable[[str], None] | None) -> tuple[str, bool]:
    """The end of the error stream, and whether the program ended in time. It is not reaped."""
    if child.stderr is None:
        raise ValueError("the error stream is a pipe")
    tail, line, ended, pidfd = b"", b"", False, os.pidfd_open(child.pid)
    try:
        with selectors.DefaultSelector() as selector, child.stderr as stream:
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ)
            selector.register(pidfd, selectors.EVENT_READ)
            # What it has printed is read to its end, unless a child of it holds the stream open: then what is there.
            while ready := selector.select(0.0 if ended else max(0.0, deadline - time.monotonic())):
                ended = ended or any(key.fd == pidfd for key, _ in ready)
                piece = _read(stream.fileno())
                if ended and not piece:
                    break
                if piece == b"":
                    selector.unregister(stream)
                    continue
                tail = (tail + (piece or b""))[-TAIL:]
                *lines, line = (line + (piece or b"")).split(b"\n")
                line = line[-TAIL:]
                for whole in lines if tell else ():
                    tell(whole.decode(errors="replace"))  # type: ignore[misc]  # there are lines only where it is one
    finally:
        os.close(pidfd)
    return tail.decode(errors="replace").strip(), ended


def _read(stream: int) -> bytes | None:
    """What is there; None where nothing is yet."""
    try:
        return os.read(stream, _PIECE)
    except BlockingIOError:
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a program's session, whether or not it has ended itself; then reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait(_TO_DIE_S)
