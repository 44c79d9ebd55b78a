"""The agent's process: whether it runs, makes progress, and how it started last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from edgewise_agent.doctor.check import Check, fail, ok, warn
from edgewise_agent.doctor.state_folder import held
from edgewise_agent.errors import StateError
from edgewise_agent.maintenance import Runtime, read_runtime


@dataclass(frozen=True)
class Process:
    held: bool | None
    """Whether a process holds the state folder."""
    runtime: Runtime | None
    problem: str = ""
    boots: Mapping[str, int] = field(default_factory=dict)
    """Unclean starts since the process ran well, by model."""

    @property
    def runs(self) -> bool:
        return self.held is True

    @property
    def online(self) -> bool:
        return self.runs and self.runtime is not None and self.runtime.online


def look(state: Path, boots: Mapping[str, int]) -> Process:
    try:
        return Process(held(state), read_runtime(state), boots=boots)
    except StateError as error:
        return Process(held(state), None, str(error), boots)


def judge(process: Process, max_boots: int) -> tuple[Check, ...]:
    """Pure."""
    return (_runs(process), _starts(process, max_boots))


def _runs(process: Process) -> Check:
    runtime = process.runtime
    if process.held is None:
        return warn("agent", "whether an agent runs cannot be found out", "run the doctor as the agent's user")
    if not process.runs:
        crashed = runtime is not None and runtime.running
        how = "it did not stop in order" if crashed else "it was not started" if runtime is None else "it was stopped"
        return warn("agent", f"no agent runs: {how}", "start the service: `systemctl start edgewise-agent`")
    if runtime is None or not runtime.running:
        why = process.problem or "it has not written down yet where it serves"
        return warn("agent", f"an agent runs, but {why}", "look again in a moment; else check the disk")
    since = datetime.fromtimestamp(runtime.started, UTC).isoformat(timespec="seconds")
    text = f"runs as process {runtime.pid} since {since}, serving at {runtime.serving_url}"
    if runtime.stalled:
        return fail("agent", f"{text}; stuck: {', '.join(runtime.stalled)}", "restart the service; keep its log")
    return ok("agent", text)


def _starts(process: Process, max_boots: int) -> Check:
    most = max(process.boots.values(), default=0)
    if most <= 1:
        return ok("starts", "the agent starts in order")
    names = ", ".join(sorted(name for name, boots in process.boots.items() if boots == most))
    return warn(
        "starts",
        f"{most} starts without an orderly stop while {names} served; more than {max_boots} withdraw it",
        "look at the service's log for what ended the process (`journalctl -u edgewise-agent`)",
    )
