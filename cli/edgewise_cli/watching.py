"""What a rollout that is watched waits for, in one line. Pure: from the server's answer alone."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

_DOING = {
    "": "have not said that they know",
    "idle": "have not said that they know",
    "committed": "have not said that they know",
    "downloading": "download",
    "verifying": "verify",
    "staged": "are about to test it",
    "self_test": "test it on themselves",
    "self-test": "test it on themselves",
    "probation": "are on probation: they serve it, and must prove it",
}
"""What a device does with its new version, by the state that it reports; the number stands before it."""


def waiting_for(rollout: dict[str, Any], now: datetime | None = None) -> str:
    """Why the rollout does not go on yet; empty where it has ended or nothing is known to be waited for."""
    if rollout["status"] == "paused":
        return f"paused: {rollout.get('reason') or 'no reason given'}; go on with `edgewise rollout resume`"
    if rollout["status"] != "running":
        return ""
    pending = [device for device in rollout.get("devices", []) if device["state"] == "pending"]
    if pending:
        doing = Counter(str(device.get("reported", "")) for device in pending)
        parts = [f"{number} {_DOING.get(state, state)}" for state, number in sorted(doing.items())]
        return f"waiting for {len(pending)} device(s): {', '.join(parts)}"
    return _soak(rollout, now or datetime.now(UTC)) or _nobody(rollout)


def _soak(rollout: dict[str, Any], now: datetime) -> str:
    """The pause after a phase, counted from the phase's start on."""
    soak_s = float(rollout["phases"][rollout["phase"]].get("soak_s") or 0)
    started = rollout.get("phase_started_at")
    if not soak_s or not started:
        return ""
    end = datetime.fromisoformat(str(started)) + timedelta(seconds=soak_s)
    left = (end - now).total_seconds()
    return f"soaking: {left:.0f} s more before the next phase" if left > 0 else ""


def _nobody(rollout: dict[str, Any]) -> str:
    counts = rollout["counts"]
    if counts.get("cohort"):
        return ""
    if counts.get("exposed"):  # an exposed device leaves the cohort only by a newer rollout, or by its revocation
        return (
            "its devices have gone to newer rollouts of the model, or were revoked; it goes on with others that come, "
            "or end it with `edgewise rollout abort`"
        )
    found = [f"{counts[name]} {name}" for name in ("offline", "unfit", "barred") if counts.get(name)]
    return "waiting for a device that is online and fits" + (f" ({', '.join(found)})" if found else "")
