"""Runs the new agent's check of itself in a child process, by the new agent's own code."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from edgewise_protocol.manifest import AgentSpec

from edgewise_agent.install.self_test import InterruptedSelfTestError
from edgewise_agent.selfupdate.boot import death
from edgewise_agent.selfupdate.errors import AgentCheckError

MODULE: Final = "edgewise_agent.selfupdate.self_check"
"""Every agent has this module, with these arguments and this answer: STATE VERSION → `Report` in JSON."""
_MAX_ANSWER: Final = 64 * 1024
_TAIL: Final = 600
_POLL_S: Final = 0.1


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The child's answer. `code` is empty when all is well."""

    code: str = ""
    text: str = ""
    models: int = 0
    """Active models whose golden inputs were answered."""


@dataclass(frozen=True)
class SelfChecker:
    """Args:
    state: the device's state folder, which the child only reads.
    timeout_s: longest time of the whole check.
    """

    state: Path
    timeout_s: float

    def run(self, site: Path, spec: AgentSpec, stopping: Callable[[], bool]) -> Report:
        """Check the agent whose packages are in `site`.

        Raises:
            AgentCheckError: it found a fault, died, or did not end.
            InterruptedSelfTestError: `stopping` became true.
        """
        paths = [str(site), os.environ.get("PYTHONPATH", "")]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as noise:
            child = subprocess.Popen(
                [sys.executable, "-B", "-P", "-m", MODULE, str(self.state), spec.version],
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=noise,
                env=env,
                cwd="/",
                start_new_session=True,
            )
            try:
                self._await(child, stopping)
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
            if child.returncode != 0:
                noise.seek(max(0, noise.seek(0, 2) - _TAIL))
                tail = " ".join(noise.read().decode(errors="replace").split()) or "it printed nothing"
                raise AgentCheckError(
                    "agent-self-check-crashed",
                    f"the check of the agent {spec.version} {death(child.returncode)}: {tail}",
                )
            answer.seek(0)
            try:
                report = msgspec.json.decode(answer.read(_MAX_ANSWER), type=Report)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise AgentCheckError(
                    "agent-self-check-crashed", f"the agent {spec.version} gave no report of itself: {error}"
                ) from error
        if report.code:
            raise AgentCheckError(report.code[:64], f"the agent {spec.version}: {report.text}")
        return report

    def _await(self, child: subprocess.Popen[bytes], stopping: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                child.wait(_POLL_S)
                return
            except subprocess.TimeoutExpired:
                if stopping():
                    raise InterruptedSelfTestError("the agent stops") from None
                if time.monotonic() >= deadline:
                    raise AgentCheckError(
                        "agent-self-check-timeout", f"the new agent's check did not end within {self.timeout_s:g} s"
                    ) from None
