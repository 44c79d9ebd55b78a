"""Runs the self-test in a child process and judges what it measured."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import msgspec
from edgewise_protocol.manifest import Manifest

from edgewise_agent.config import GatewayConfig, SelfTestConfig
from edgewise_agent.errors import InstallError, SelfTestCrashError, SelfTestError, SelfTestTimeoutError
from edgewise_agent.install.self_test_child import Limits, Verdict

_CHILD: Final = "edgewise_agent.install.self_test_child"
_MAX_ANSWER: Final = 16 * 1024
_TAIL: Final = 600
_POLL_S: Final = 0.1


class RefusedError(SelfTestError):
    """The child's verdict, or the judgement of its measurements, is no; `code` says why."""

    def __init__(self, code: str, text: str, measured: dict[str, float]) -> None:
        super().__init__(text)
        self.code = code
        self.measured = measured


class InterruptedSelfTestError(InstallError):
    """The agent stops; the self-test is repeated when it starts again."""

    code = "self-test-interrupted"


@dataclass(frozen=True)
class SelfTester:
    """Args:
    config: limits of the child.
    threads: threads of the engine.
    simulated: the board is not the profile's: latency and memory do not bind.
    gateway: the board that the model runs on, where it is not this machine.
    """

    config: SelfTestConfig
    threads: int
    simulated: bool
    gateway: GatewayConfig | None = None

    def run(self, folder: Path, manifest: Manifest, interrupted: Callable[[], bool]) -> dict[str, float]:
        """Test the bundle in a folder of the store; returns the measurements.

        Raises:
            RefusedError: the model loads but does not do what it must.
            SelfTestCrashError, SelfTestTimeoutError: the child died or did not end.
            InterruptedSelfTestError: `interrupted` became true.
        """
        verdict = self._examine(folder, interrupted)
        if verdict.code:
            raise RefusedError(verdict.code, verdict.text or "the self-test failed", verdict.measured)
        if not self.simulated:
            judge(manifest, verdict.measured)
        return verdict.measured

    def bench(self, folder: Path, seconds: float) -> Verdict:
        """Test a bundle in a folder, then time calls for some seconds; measurements are not judged here.

        It runs as a served model does: with the service's own priority.

        Raises:
            RefusedError: the model loads but does not answer as it must.
            SelfTestCrashError, SelfTestTimeoutError: the child died or did not end.
        """
        verdict = self._examine(folder, lambda: False, bench_s=seconds)
        if verdict.code:
            raise RefusedError(verdict.code, verdict.text or "the self-test failed", verdict.measured)
        return verdict

    def _examine(self, folder: Path, interrupted: Callable[[], bool], bench_s: float = 0.0) -> Verdict:
        limits = Limits(
            memory_mib=self.config.memory_mib,
            cpu_s=self.config.cpu_s + math.ceil(bench_s * self.threads),
            nice=0 if bench_s else self.config.nice,
            threads=self.threads,
            bench_s=bench_s,
            gateway=self.gateway,
        )
        return self._child(
            [str(folder), msgspec.json.encode(limits).decode()], interrupted, self.config.timeout_s + bench_s
        )

    def _child(self, arguments: list[str], interrupted: Callable[[], bool], timeout_s: float) -> Verdict:
        with _memory_file() as answer, _memory_file() as noise:
            child = subprocess.Popen(
                [sys.executable, "-B", "-P", "-m", _CHILD, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=noise,
                cwd="/",
                start_new_session=True,
            )
            try:
                self._await(child, interrupted, timeout_s)
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
            if child.returncode != 0:
                raise SelfTestCrashError(f"the self-test's process {_death(child.returncode)}: {_tail(noise)}")
            answer.seek(0)
            try:
                return msgspec.json.decode(answer.read(_MAX_ANSWER), type=Verdict)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise SelfTestCrashError(f"the self-test's process gave no verdict: {error}") from error

    def _await(self, child: subprocess.Popen[bytes], interrupted: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                child.wait(_POLL_S)
                return
            except subprocess.TimeoutExpired:
                if interrupted():
                    raise InterruptedSelfTestError("the agent stops") from None
                if time.monotonic() >= deadline:
                    raise SelfTestTimeoutError(f"the self-test did not end within {timeout_s:g} s") from None


def _memory_file() -> IO[bytes]:
    """A file that a full disk cannot keep from being written; the child limits the size of its files."""
    return os.fdopen(os.memfd_create("self-test"), "w+b")


def judge(manifest: Manifest, measured: dict[str, float]) -> None:
    """Hold measurements against the manifest's budget; raise `RefusedError` naming by how much it is missed."""
    budget = manifest.budget
    latency, peak = measured.get("latency_ms", 0.0), measured.get("peak_mib", 0.0)
    if budget.latency_ms and latency > budget.latency_ms:
        raise RefusedError(
            "self-test-latency",
            f"one sample takes {latency:.2f} ms on this device; the budget is {budget.latency_ms:g} ms",
            measured,
        )
    if budget.memory_mib and peak > budget.memory_mib:
        raise RefusedError(
            "self-test-memory",
            f"the model needs {peak:.0f} MiB on this device; the budget is {budget.memory_mib} MiB",
            measured,
        )


def _death(code: int) -> str:
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"ended with status {code}"


def _tail(noise: IO[bytes]) -> str:
    noise.seek(0, 2)
    noise.seek(max(0, noise.tell() - _TAIL))
    return " ".join(noise.read().decode(errors="replace").split()) or "it printed nothing"
