"""Trying an outside file in an engine that may crash on it: in a process of its own.

A file can be sound to the last offset and still make a kernel fail in ways that end the process
(shapes that do not fit each other, a claim of all memory). The child loads it and answers one
request of zeros, under limits of memory and time; what is left of it is an answer or a message.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

from edgewise_converter.errors import ModelFileError

SECONDS: Final = 120
"""For loading and one answer, engine start included."""
MEMORY: Final = 8 << 30
"""Address space of the child, bytes."""
_MOST: Final = 400
_LOADED: Final = b"the file runs"
_REFUSED: Final = 3
_CHILD: Final = "from edgewise_converter.tflite_file.probe_child import main; main()"


def probe(data: bytes, name: str, *, seconds: float = SECONDS) -> None:
    """Run a file once in a child process.

    Args:
        data: the file, verified.
        name: of it, for messages.
        seconds: after which the child is ended.

    Raises:
        ModelFileError: LiteRT refuses the file, crashes on it, or is not done in time.
    """
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONFAULTHANDLER": ""}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD, str(MEMORY), str(int(seconds) + 1)],
            input=data,
            capture_output=True,
            timeout=seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelFileError(
            f"{name} is not loaded and answered within {seconds:g} s: it is too large, or damaged"
        ) from error
    except OSError as error:
        raise ModelFileError(f"{name} cannot be tried in a process of its own: {error}") from error
    if done.returncode == 0 and done.stdout.endswith(_LOADED):
        return
    if done.returncode == _REFUSED:
        raise ModelFileError(f"LiteRT cannot run {name}: {done.stdout.decode('utf-8', 'replace')[-_MOST:]}")
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
    raise ModelFileError(
        f"{name} crashes LiteRT ({how}): it is damaged, or not made by a TFLite converter; export the model anew"
    )
