"""pip as the tool that finds and makes wheels. What it says on failure becomes this tool's errors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from edgewise_cli.errors import NotInstalledError, RefusedError, TimedOutError

TIMEOUT_S: Final = 1800
_TAIL: Final = 1500


def run(arguments: Sequence[str], what: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run Python with arguments; what it printed.

    Raises:
        TimedOutError: it took longer than half an hour.
        RefusedError: it failed; the message has the end of what it said.
    """
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=dict(os.environ if env is None else env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimedOutError(f"{what} took longer than {TIMEOUT_S // 60} minutes") from error
    if done.returncode:
        raise RefusedError(f"{what} failed: {done.stdout[-_TAIL:].strip()}", code="wheel-build")
    return done.stdout


def pip(arguments: Sequence[str], what: str) -> str:
    """Run pip without questions; raises as `run` does, and `NotInstalledError`."""
    if find_spec("pip") is None:
        raise NotInstalledError("this Python has no pip: python -m ensurepip, or install Edgewise with pip")
    return run(
        ["-m", "pip", "--no-input", "--disable-pip-version-check", "--no-color", *arguments, "--progress-bar=off"], what
    )
