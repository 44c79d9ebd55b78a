"""Danger: a run that hangs a conversion, fills the memory, or leaves processes behind."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import pytest
from edgewise_converter.proof import process


def run(code: str, **options: object) -> process.Done:
    return process.run([sys.executable, "-I", "-c", code], **{"limit_s": 60.0, **options})  # type: ignore[arg-type]


def test_input_output_and_errors_pass_through() -> None:
    told: list[str] = []
    code = (
        "import sys; data = sys.stdin.buffer.read(); sys.stdout.buffer.write(data[::-1]); "
        "print('one\\ntwo', file=sys.stderr)"
    )
    done = run(code, data=b"abc" * 100_000, max_output=300_000, tell=told.append)
    assert done == process.Done(0, b"cba" * 100_000, "one\ntwo")
    assert told == ["one", "two"]


def test_more_output_than_allowed_is_a_failure() -> None:
    done = run("print('x' * 1000)", max_output=100)
    assert done.status != 0
    assert done.output == b""
    assert "more than 100 bytes" in done.log


def test_what_takes_too_long_is_ended_with_all_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)"
    )
    started = time.monotonic()
    done = run(code, limit_s=5.0)
    assert done.timed_out
    assert time.monotonic() - started < 60
    deadline = time.monotonic() + 20
    status = Path(f"/proc/{pid.read_text()}/stat")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while status.read_text().rpartition(")")[2].split()[0] not in "ZX":
            assert time.monotonic() < deadline, "the grandchild lives on"
            time.sleep(0.02)


def test_a_child_that_holds_the_stream_open_is_ended_with_its_parent() -> None:
    code = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('done', file=sys.stderr)"
    )
    started = time.monotonic()
    done = run(code)
    assert (done.status, done.log, done.timed_out) == (0, "done", False)
    assert time.monotonic() - started < 30


def test_a_closed_error_stream_is_not_the_end() -> None:
    done = run("import os, time; os.close(2); time.sleep(0.5); print('out')", max_output=100)
    assert done == process.Done(0, b"out\n", "")


def test_a_death_by_signal_is_told() -> None:
    assert run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)").status == -11


def test_a_program_that_is_not_there_raises() -> None:
    with pytest.raises(FileNotFoundError):
        process.run(["/nonexistent/program"], limit_s=1.0)
