"""What `edgewise-agent status` shows: read from the state files, so that it works without a running agent."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from edgewise_protocol.messages import ModelReport

from edgewise_agent.app import INSTALLED_FILE
from edgewise_agent.identity.identity import read_card
from edgewise_agent.identity.standing import read_standing
from edgewise_agent.install.state import load_state
from edgewise_agent.maintenance import read_runtime
from edgewise_agent.reporting.report import build_report
from edgewise_agent.words import words_for


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    device_id: str
    channel: str
    running: bool
    online: bool
    serving_url: str
    simulated: bool
    assignment_version: int
    deployment: str
    error_code: str
    error: str
    identity_code: str
    """Why the identity does not stand well, e.g. `device-revoked` or `cloned-identity`; empty: it does."""
    identity_error: str
    models: tuple[ModelReport, ...]


def read_overview(state: Path) -> Overview:
    """Read the state folder; raises `NotEnrolledError`, `IdentityError` or `StateError`."""
    card = read_card(state)
    standing = read_standing(state)
    installed = load_state(state / INSTALLED_FILE)
    runtime = read_runtime(state)
    running = runtime is not None and runtime.running and _alive(runtime.pid)
    # Without a running agent nothing serves; the slots then tell what would.
    serving = {name: model.active for name, model in installed.models.items() if model.active}
    report = build_report(installed, serving, 0.0, bool(card.simulated_board))
    return Overview(
        device_id=card.device_id,
        channel=card.channel,
        running=running,
        online=running and runtime is not None and runtime.online,
        serving_url=runtime.serving_url if running and runtime is not None else "",
        simulated=bool(card.simulated_board),
        assignment_version=report.assignment_version,
        deployment=report.deployment,
        error_code=report.error_code,
        error=report.error,
        identity_code=standing.code,
        identity_error=standing.text,
        models=report.models,
    )


def render(overview: Overview) -> str:
    """The overview as lines of text."""
    state = "running" if overview.running else "not running"
    link = "online" if overview.online else "offline"
    lines = [
        f"device      {overview.device_id} (channel {overview.channel})" + (" [simulated]" * overview.simulated),
        f"agent       {state}, {link}" + (f", serving at {overview.serving_url}" if overview.serving_url else ""),
        f"assignment  {overview.assignment_version} (deployment {overview.deployment})",
    ]
    if overview.identity_code:
        lines += _words("identity", overview.identity_code, overview.identity_error)
    if overview.error_code:
        lines += _words("refused", overview.error_code, overview.error)
    for model in overview.models:
        since = datetime.fromtimestamp(model.since, UTC).isoformat(timespec="seconds")
        serves = f"version {model.active_version}" if model.active_version else "nothing"
        lines.append(f"model       {model.model}: serves {serves}; {model.state} since {since}")
        if model.target_version and model.target_version != model.active_version:
            lines.append(f"            assigned version {model.target_version}")
        if model.error_code:
            lines += _words("", model.error_code, model.error)
    if not overview.models:
        lines.append("model       none")
    return "\n".join(lines)


def _words(label: str, code: str, error: str) -> list[str]:
    """A code, what the agent said, what that means, and what to do."""
    words = words_for(code)
    lines = [f"{label:<12}{code}: {error}", f"{'':<12}{words.meaning}"]
    return [*lines, f"{'':<12}-> {words.mend}"] if words.mend else lines


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
