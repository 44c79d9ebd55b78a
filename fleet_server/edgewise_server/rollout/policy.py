"""The rollout policy: a pure function of plan, fleet facts and clock.

Level-triggered: it looks at what is, not at what happened, so that it may be asked twice, late, or by
another process. It exposes no more of the cohort than the phase allows, in an order that a hash of
rollout and device fixes; a device that is offline neither blocks a phase nor counts in its size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final

from edgewise_server.rollout.facts import (
    Abort,
    AssignDevice,
    Complete,
    Decision,
    DeviceFact,
    Pause,
    RevertDevice,
    RolloutState,
    StartPhase,
)
from edgewise_server.rollout.gates import breach
from edgewise_server.rollout.plan import Plan

MAX_DECISIONS: Final = 500
"""Devices that one decision assigns or reverts; the next tick goes on."""
_RATE_WINDOW_S: Final = 60.0


def rank(rollout_id: str, device_id: str) -> bytes:
    """Position of a device in a rollout: the canary is whoever ranks first."""
    return hashlib.sha256(f"{rollout_id}\0{device_id}".encode()).digest()


def decide(plan: Plan, state: RolloutState, devices: Sequence[DeviceFact], now: float) -> list[Decision]:
    """What to do next.

    Args:
        plan: what the operator asked for.
        state: what the rollout remembers.
        devices: every device of the group, and every exposed device.
        now: seconds since the epoch.

    Returns:
        decisions in the order in which they are to be carried out; empty when there is nothing to do.
    """
    match state.status:
        case "aborted":
            return _revert(devices)
        case "paused":
            return []
        case "completed":
            if breach(plan.gates, devices, state.gates_from):
                return []
            return list(_expose(plan, len(plan.phases) - 1, devices, now, "joined after the rollout completed"))
        case "running":
            return _advance(plan, state, devices, now)


def cohort(devices: Sequence[DeviceFact]) -> list[DeviceFact]:
    """The devices that percentages are taken of: exposed ones, and those that could be exposed now."""
    return [d for d in devices if not d.held and (d.exposure is not None or _exposable(d))]


def _exposable(device: DeviceFact) -> bool:
    return device.online and device.available and not device.barred


def _advance(plan: Plan, state: RolloutState, devices: Sequence[DeviceFact], now: float) -> list[Decision]:
    reason = breach(plan.gates, devices, state.gates_from)
    if reason is not None:
        return [Abort(reason)] if plan.gates.on_breach == "abort" else [Pause(reason)]
    phase = min(state.phase, len(plan.phases) - 1)
    assignments = _expose(plan, phase, devices, now, f"phase {phase + 1} of {len(plan.phases)}")
    if assignments:
        return list(assignments)
    waiting = _unfinished(plan, phase, devices, now)
    if waiting is not None:
        return []
    passed = f"phase {phase + 1} passed: {_summary(devices)}"
    if phase + 1 < len(plan.phases):
        return [StartPhase(phase + 1, passed)]
    return [Complete(passed)]


def _expose(plan: Plan, phase: int, devices: Sequence[DeviceFact], now: float, reason: str) -> list[AssignDevice]:
    members = cohort(devices)
    exposed = [d for d in members if d.exposure is not None]
    room = plan.phases[phase].allowed(len(members)) - len(exposed)
    pending = sum(d.online and d.exposure is not None and d.exposure.outcome == "pending" for d in exposed)
    room = min(room, plan.max_concurrent - pending, MAX_DECISIONS)
    if plan.rate_per_minute is not None:
        recent = sum(d.exposure is not None and d.exposure.exposed_at > now - _RATE_WINDOW_S for d in exposed)
        room = min(room, plan.rate_per_minute - recent)
    if room <= 0:
        return []
    candidates = sorted(
        (d.device_id for d in members if d.exposure is None), key=lambda device: rank(plan.rollout_id, device)
    )
    return [AssignDevice(device, reason) for device in candidates[:room]]


def _unfinished(plan: Plan, phase: int, devices: Sequence[DeviceFact], now: float) -> str | None:
    """Why the phase is not over yet; None when it is."""
    members = cohort(devices)
    exposures = [(d, d.exposure) for d in members if d.exposure is not None]
    allowed = plan.phases[phase].allowed(len(members))
    if not members:
        return "no device is online"
    if len(exposures) < allowed:
        return "devices are still to be assigned"
    if not exposures:
        return None  # the phase is too small for any device, and `min_devices` asks for none
    if any(d.online and e.outcome == "pending" for d, e in exposures):
        return "devices are still at work"
    ended = [e for _, e in exposures if e.outcome != "pending"]
    if len(ended) < max(1, math.ceil(plan.gates.min_reporting * len(exposures))):
        return "too few devices have reported"
    last = max(e.ended_at or e.exposed_at for e in ended)
    if now < last + plan.phases[phase].soak_s:
        return "the phase soaks"
    return None


def _revert(devices: Sequence[DeviceFact]) -> list[Decision]:
    exposed = sorted(d.device_id for d in devices if not d.held and d.exposure is not None and not d.exposure.reverted)
    return [RevertDevice(device, "the rollout was aborted") for device in exposed[:MAX_DECISIONS]]


def _summary(devices: Sequence[DeviceFact]) -> str:
    outcomes = [d.exposure.outcome for d in devices if d.exposure is not None and not d.held]
    parts = [f"{outcomes.count('committed')} committed"]
    parts += [f"{outcomes.count('failed')} failed"] if "failed" in outcomes else []
    parts += [f"{outcomes.count('pending')} offline"] if "pending" in outcomes else []
    return ", ".join(parts)
