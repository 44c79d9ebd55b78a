"""The danger: the first thing that a newcomer runs, the demo, does not do what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 420
VERDICTS = 14
"""Rows of the summary: one for each thing that the demo must show."""


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
def test_the_demo_shows_all_that_it_promises() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EDGEWISE_")}
    environment |= {"PYTHONPATH": str(ROOT / "examples"), "COLUMNS": "160"}
    process = subprocess.Popen(
        [sys.executable, "-m", "demo"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        told, _ = process.communicate(timeout=LIMIT_S)
    finally:
        # SIGTERM, so that the demo ends what it started.
        process.terminate()
        process.wait(30)
    assert process.returncode == 0, told[-6000:]
    assert "Everything happened." in told
    summary = told.partition("What was shown")[2].partition("Time\n")[0]
    verdicts = re.findall(r"│ *(\S.*?) *│ *(\S.*?) *│ *(yes|NO) *│", summary)
    assert len(verdicts) >= VERDICTS, summary
    assert [verdict for verdict in verdicts if verdict[2] != "yes"] == []
