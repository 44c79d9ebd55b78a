"""Danger: a copied identity is not noticed; or a device that restarts, reboots or moves is taken for a copy."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from edgewise_protocol.messages import Status
from edgewise_server.models.base import utc_now
from edgewise_server.models.devices import Device
from edgewise_server.models.telemetry import Alert
from edgewise_server.services import clones
from edgewise_server.services.clones import KEPT, RETURNS, Clash, Run, advance
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlmodel import select

A, B = "a" * 32, "b" * 32
OF_ONE_DEVICE = st.lists(st.sampled_from(["restart", "reconnect", "repeat", "move", "old-agent"]), max_size=60)


def births(course: list[str]) -> Iterator[Run]:
    """What one device with one live agent at a time can be born as."""
    runs, sessions = count(), count()
    run, instance, last = f"{next(runs):x}", A, None
    for happened in course:
        if happened == "repeat" and last is not None:
            yield last  # QoS 1: the same birth once more, at any time
            continue
        if happened in ("restart", "move"):
            run = f"{next(runs):x}"
        if happened == "move":  # the card is put into another board, and back again
            instance = B if instance == A else A
        last = Run("" if happened == "old-agent" else run, instance, f"s{next(sessions)}")
        yield last


@settings(max_examples=300, deadline=None)
@given(OF_ONE_DEVICE)
def test_one_agent_at_a_time_is_never_a_clone(course):
    known: tuple[Run, ...] = ()
    for born in births(course):
        known, clash = advance(known, born)
        assert clash is None
        assert len(known) <= KEPT


@settings(max_examples=200, deadline=None)
@given(OF_ONE_DEVICE, st.integers(1, 3), st.booleans())
def test_two_agents_at_a_time_are_noticed_after_a_few_turns(course, reconnects, same_machine):
    known: tuple[Run, ...] = ()
    for born in births(course):
        known, _ = advance(known, born)
    instances = (A, A if same_machine else B)
    sessions, found = count(), []
    for turn in range(2 + RETURNS):
        for _ in range(reconnects):
            known, clash = advance(known, Run(f"live{turn % 2}", instances[turn % 2], f"t{next(sessions)}"))
            found += [clash] if clash else []
    assert found
    assert set(found[0].instances) == set(instances)


def test_a_single_birth_that_comes_late_accuses_nobody():
    known: tuple[Run, ...] = ()
    for run, session in (("1", "s1"), ("2", "s2"), ("1", "s3"), ("2", "s4"))[:3]:
        known, clash = advance(known, Run(run, A, session))
        assert clash is None
    assert advance(known, Run("2", B, "s4"))[1] == Clash((A, B))


def test_a_clone_is_named_once_with_both_fingerprints_until_the_identity_is_replaced(trusted_api):
    with trusted_api.context.database.session() as session:
        session.add(Device(id="cam", channel="lab", certificate_serial="1", certificate_not_after=utc_now()))
    now = utc_now()

    def born(run: str, instance: str, name: str) -> None:
        with trusted_api.context.database.session() as session:
            device = session.get(Device, "cam")
            clones.record(session, device, Status(online=True, session=name, run=run, instance=instance), now)

    for turn in range(8):
        born("12"[turn % 2], (A, B)[turn % 2], f"s{turn}")
    shown = trusted_api.viewer.get("/devices/cam").json()
    assert shown["cloned_at"]
    assert set(shown["cloned_instances"]) == {A, B}
    (alert,) = trusted_api.viewer.get("/alerts").json()["alerts"]
    assert (alert["kind"], alert["device_id"], alert["closed_at"]) == ("cloned-identity", "cam", None)
    assert A[:12] in alert["reason"] and B[:12] in alert["reason"]
    with trusted_api.context.database.session() as session:
        clones.settle(session, session.get(Device, "cam"), now)
    assert trusted_api.viewer.get("/devices/cam").json()["cloned_at"] is None
    with trusted_api.context.database.session(read_only=True) as session:
        assert session.exec(select(Alert)).one().closed_at is not None


@pytest.mark.parametrize("run", ["x", "A", "0" * 33])
def test_a_run_id_is_hexadecimal_and_short(run):
    from edgewise_protocol.errors import MalformedError
    from edgewise_protocol.messages import decode, encode

    with pytest.raises(MalformedError):
        decode(Status, encode(Status(online=True, session="s", run=run)))
