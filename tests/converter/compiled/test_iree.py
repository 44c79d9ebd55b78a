"""Runs `inside_iree.py` apart: IREE's runtime reports leaks at the end of a process that holds much else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("marker", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_compiling_by_iree(marker: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", marker, str(Path(__file__).with_name("inside_iree.py"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "passed" in done.stdout or "skipped" in done.stdout
