"""One identity, two machines: finds it from the order in which starts of the agent are born.

Every start of an agent draws a random run id, and the state folder's lock admits one agent. A run
id that comes back after another one was born therefore proves two agents with one identity:
a restart, a reboot or a card moved to another board only ever brings new ids.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final

from edgewise_protocol.messages import Status
from sqlmodel import Session, col, select

from edgewise_server.models.base import new_id
from edgewise_server.models.devices import Device
from edgewise_server.models.telemetry import Alert

KIND: Final = "cloned-identity"
KEPT: Final = 8
"""Runs that are remembered."""
RETURNS: Final = 2
"""Times that runs must have come back: one delayed birth accuses nobody."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One start of an agent: the last session in which it was born, and how often it came back."""

    run: str
    instance: str
    session: str
    returns: int = 0


@dataclass(frozen=True)
class Clash:
    """The fingerprints of the machine that was there, and of the one that came back; equal on one machine."""

    instances: tuple[str, str]


def advance(runs: tuple[Run, ...], born: Run) -> tuple[tuple[Run, ...], Clash | None]:
    """Take in a birth. Pure.

    Args:
        runs: what is remembered, the newest last.
        born: the birth; one without a run id, or heard before, changes nothing.
    """
    if not born.run or any(known.session == born.session for known in runs):
        return runs, None
    old = next((known for known in runs if known.run == born.run), None)
    others = tuple(known for known in runs if known.run != born.run)
    if old is None or not runs or runs[-1].run == born.run:
        returns = old.returns if old else 0
        return (*others, Run(born.run, born.instance, born.session, returns))[-KEPT:], None
    now = (*others, Run(born.run, born.instance, born.session, old.returns + 1))[-KEPT:]
    if sum(known.returns for known in now) < RETURNS:
        return now, None
    return now, Clash((runs[-1].instance, born.instance))


def record(session: Session, device: Device, status: Status, now: datetime) -> None:
    """Take in a birth, and mark the device and alert the operators where it proves a clone."""
    if not status.online:
        return
    known = tuple(Run(**entry) for entry in device.births)
    runs, clash = advance(known, Run(status.run, status.instance, status.session))
    if runs != known:
        device.births = [asdict(run) for run in runs]
    if clash is None or device.cloned_at is not None:
        return
    device.cloned_at, device.cloned_instances = now, list(clash.instances)
    log.warning("%s: %s: %s", KIND, device.id, _text(clash))
    session.add(
        Alert(
            id=new_id("alert"),
            kind=KIND,
            severity="severe",
            model="",
            version=0,
            device_id=device.id,
            opened_at=now.timestamp(),
            reason=f"{_text(clash)}; replace the identity: `edgewise device replace {device.id}`",
            simulated=device.simulated,
        )
    )


def settle(session: Session, device: Device, now: datetime) -> None:
    """The device has a new identity: what was known of its copies no longer counts."""
    device.births, device.cloned_at, device.cloned_instances = [], None, []
    open_alerts = select(Alert).where(Alert.kind == KIND, Alert.device_id == device.id, col(Alert.closed_at).is_(None))
    for alert in session.exec(open_alerts):
        alert.closed_at = now.timestamp()
        session.add(alert)


def _text(clash: Clash) -> str:
    first, second = (instance[:12] or "unknown" for instance in clash.instances)
    if first == second:
        return f"two agents on the machine {first} take turns with this device's identity"
    return f"the machines {first} and {second} take turns with this device's identity"
