"""Danger: after a rotation the fleet waits for its assignments: one device, or their number, is in the way."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from edgewise_protocol.targets import SignedFile
from edgewise_server.errors import DirectorError
from edgewise_server.models.assignments import Assignment
from edgewise_server.orchestrator import service
from edgewise_server.services import assignments, devices
from sqlmodel import select, update


def assigned(fleet: Any, kit: Any, number: int) -> list[str]:
    """So many devices, all of whose assignments are due: as after a rotation of the director's key."""
    bundle = kit.make_bundle()
    fleet.publish(bundle)
    ids = [f"d{n:04d}" for n in range(number)]
    fleet.add(*ids)
    with fleet.context.database.session() as session:
        for device_id in ids:
            device = devices.get(session, device_id)
            assignments.change(session, fleet.context, device, "digits", bundle.file, "none", 600)
    with fleet.context.database.session() as session:
        session.exec(update(Assignment).values(expires_at=0.0))
    return ids


def due(fleet: Any) -> set[str]:
    with fleet.context.database.session(read_only=True) as session:
        return set(session.exec(select(Assignment.device_id).where(Assignment.expires_at == 0.0)).all())


def test_one_round_signs_more_than_one_batch(fleet: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "RENEWAL_S", 60.0)
    number = 2 * assignments.BATCH + 50
    assigned(fleet, kit, number)
    begun = time.perf_counter()
    fleet.orchestrator.tick(fleet.now)
    print(f"{number / (time.perf_counter() - begun):.0f} assignments a second")
    assert due(fleet) == set()


def test_a_round_that_ran_out_of_time_is_gone_on_with_at_once(
    fleet: Any, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignments.renew, "__kwdefaults__", {"after": "", "limit": 2})
    monkeypatch.setattr(service, "RENEWAL_S", 1e-9)
    times = iter(n * 1e-10 for n in range(1000))
    monkeypatch.setattr(service, "time", SimpleNamespace(monotonic=lambda: next(times)))
    assigned(fleet, kit, 40)
    fleet.orchestrator.tick(fleet.now)
    left = due(fleet)
    assert 0 < len(left) < 40, "the first round has had its time"
    for _ in range(10):
        fleet.orchestrator.tick(fleet.now + 0.1)
    assert due(fleet) == set(), "less than a slow look has passed"


def test_who_cannot_be_signed_for_bars_nobody(fleet: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A raised floor and revoked devices: more of both than one batch holds, and first by their ids."""
    monkeypatch.setattr(assignments.renew, "__kwdefaults__", {"after": "", "limit": 3})
    ids = assigned(fleet, kit, 10)
    with fleet.context.database.session() as session:
        for device_id in ids[:4]:
            devices.revoke(session, device_id)
        for device_id in ids[4:8]:
            row = session.get(Assignment, device_id)
            assert row is not None
            row.bundles = [{**row.bundles[0], "path": "lab/digits/raspberry-pi-4-64/99.ewb"}]
            session.add(row)
    fleet.orchestrator.tick(fleet.now)
    assert due(fleet) == set(ids[:8])
    with fleet.context.database.session() as session:
        device = devices.get(session, ids[4])
        files: list[SignedFile] = list(assignments.bundles_of(assignments.current(session, ids[4])).values())
        with pytest.raises(DirectorError):
            assignments.assign(session, fleet.context, device, files, "none", 600)
