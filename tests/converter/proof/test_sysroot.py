"""Runs `inside_sysroot.py` apart: it forks builders, which a process with an engine's threads in it must not do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_sysroots() -> None:
    command = [sys.executable, "-m", "pytest", "-q", str(Path(__file__).with_name("inside_sysroot.py"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "passed" in done.stdout
