"""Danger: a device deletes what the server has not stored, or the server counts a message twice."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from edgewise_protocol import topics
from edgewise_protocol.facts import DeviceFacts
from edgewise_protocol.messages import Event, ModelTelemetry, Reported, Status, Telemetry, encode
from edgewise_server.bridge.service import Bridge
from edgewise_server.models.devices import Device
from edgewise_server.models.telemetry import ModelWindow, StoredMessage
from edgewise_server.services import ingest
from sqlmodel import func, select


def event(seq: int, stream: str = "s1", text: str = "", after: int | None = None) -> Event:
    return Event(stream=stream, seq=seq, at=1000.0 + seq, kind="agent", text=text, after=after)


def stored(context: Any, device_id: str = "d1") -> list[int]:
    with context.database.session(read_only=True) as session:
        statement = select(StoredMessage.seq).where(StoredMessage.device_id == device_id).order_by(StoredMessage.seq)
        return list(session.exec(statement))


def through(phone: Any, stream: str = "s1") -> int:
    return max((ack.through for ack in phone.acks if ack.stream == stream), default=0)


def test_messages_are_stored_once_and_acknowledged(bridged: SimpleNamespace) -> None:
    bridged.add_device("d1")
    bridged.bridge()
    phone = bridged.phone("d1")
    for seq in (1, 2, 2, 3, 1):
        phone.send("event", event(seq))
    phone.send(
        "telemetry",
        Telemetry(
            stream="s1",
            seq=4,
            at=5.0,
            window_s=10,
            models=(ModelTelemetry(model="digits", version=1, requests=7, errors=1, latency_p95_ms=2.5),),
        ),
    )
    phone.wait(lambda: through(phone) >= 4, "the ack of all four")
    assert stored(bridged.context) == [1, 2, 3, 4]
    with bridged.context.database.session(read_only=True) as session:
        window = session.exec(select(ModelWindow)).one()
        assert (window.requests, window.errors, window.p95_ms) == (7, 1, 2.5)


def test_no_acknowledgement_before_the_commit(bridged: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    bridged.add_device("d1")
    inside, proceed = threading.Event(), threading.Event()
    original = bridged.context.database.session
    bridge = bridged.bridge()
    phone = bridged.phone("d1")
    take = bridge._commit

    def slow_commit(items: list[Any]) -> Any:
        if items:
            inside.set()
            assert proceed.wait(15)
        return take(items)

    monkeypatch.setattr(bridge, "_commit", slow_commit)
    phone.send("event", event(1))
    assert inside.wait(15)
    with pytest.raises(AssertionError, match="timed out"):
        phone.wait(lambda: phone.acks, "an ack", timeout_s=0.5)
    assert original is not None and stored(bridged.context) == []
    proceed.set()
    phone.wait(lambda: through(phone) == 1, "the ack")
    assert stored(bridged.context) == [1]


def test_killed_between_commit_and_acknowledgement(bridged: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker delivers again to the successor; the message stands in the database once, and is then acknowledged."""
    bridged.add_device("d1")
    first = bridged.bridge()
    phone = bridged.phone("d1")
    committed = threading.Event()
    acknowledged: list[int] = []
    connection = first._connection
    assert connection is not None

    def die(_packets: Any) -> None:
        if stored(bridged.context):
            acknowledged.append(through(phone))
            committed.set()
            connection._client._sock_close()  # a killed process says no goodbye
            raise RuntimeError("killed")

    monkeypatch.setattr(connection, "acknowledge", die)
    phone.send("event", event(1, text="only once"))
    assert committed.wait(15)
    assert acknowledged[0] == 0
    phone.wait(lambda: through(phone) == 1, "the ack after redelivery", timeout_s=30)
    assert stored(bridged.context) == [1]


def test_messages_sent_while_the_server_is_away_arrive(bridged: SimpleNamespace) -> None:
    bridged.add_device("d1")
    first = bridged.bridge()
    phone = bridged.phone("d1")
    first.stop()
    for seq in range(1, 21):
        phone.send("event", event(seq))
    bridged.bridge()
    phone.wait(lambda: through(phone) == 20, "all twenty")
    assert stored(bridged.context) == list(range(1, 21))


def test_a_gap_is_waited_for_until_the_device_says_that_it_holds_it_no_longer(bridged: SimpleNamespace) -> None:
    """Found in review: a gap that was old enough was passed over, and the device deleted what had never been stored."""
    bridged.add_device("d1")
    bridged.bridge()
    phone = bridged.phone("d1")
    phone.send("event", event(1))
    phone.send("event", event(5, after=3))
    phone.send("event", event(9, stream="other", after=0))
    phone.wait(lambda: through(phone, "other") == 9, "the ack of a stream that begins late")
    assert through(phone) == 1 and stored(bridged.context) == [1, 5, 9]
    phone.send("event", event(3, after=1))
    phone.wait(lambda: through(phone) == 3, "the ack up to what the device holds")
    phone.send("event", event(5, after=3))
    phone.wait(lambda: through(phone) == 5, "the ack of all")
    assert stored(bridged.context) == [1, 3, 5, 9]


def test_a_message_that_breaks_the_contract_is_kept_and_holds_its_stream_up_no_longer(bridged: SimpleNamespace) -> None:
    bridged.add_device("d1")
    bridged.bridge()
    phone = bridged.phone("d1")
    phone.send_raw(topics.device("d1", "event"), b'{"stream":"s1","seq":1,"at":5,"kind":7}')
    phone.send("event", event(2))
    phone.wait(lambda: through(phone) == 2, "the ack of both")
    with bridged.context.database.session(read_only=True) as session:
        refused = session.exec(select(StoredMessage).where(StoredMessage.seq == 1)).one()
        assert (refused.kind, refused.payload) == ("refused", b'{"stream":"s1","seq":1,"at":5,"kind":7}')


def test_unknown_devices_and_malformed_packets_do_no_harm(bridged: SimpleNamespace) -> None:
    bridged.add_device("d1")
    bridge = bridged.bridge()
    stranger, phone = bridged.phone("stranger"), bridged.phone("d1")
    stranger.send("event", event(1))
    phone.send_raw(topics.device("d1", "event"), b"{not json")
    phone.send_raw(topics.device("d1", "event"), encode(event(1)).replace(b'"seq":1', b'"seq":-1'))
    phone.send_raw(topics.device("d1", "status"), b'{"online":true,"session":"s","spec_version":"9.0"}')
    phone.send("event", event(2))
    phone.send("event", event(1))
    phone.wait(lambda: through(phone) == 2, "the good ones")
    assert stored(bridged.context, "stranger") == []
    bridged.wait_for(lambda: bridge._refused == 3, "the refusals")


def test_status_and_reported_reach_the_device_row(bridged: SimpleNamespace) -> None:
    bridged.add_device("d1")
    bridged.bridge()
    phone = bridged.phone("d1")

    def row() -> Device:
        with bridged.context.database.session(read_only=True) as session:
            found = session.exec(select(Device)).one()
            session.expunge(found)
            return found

    facts = DeviceFacts(machine="x86_64", compatible=("x86-64",), engines={"onnxruntime": "1.32.0"}, simulated=True)
    phone.send("status", Status(online=True, session="one", at=100.0, facts=facts, serving_url="http://127.0.0.1:9"))
    bridged.wait_for(lambda: row().online, "the birth")
    phone.send("status", Status(online=True, session="two", at=200.0, facts=facts))
    phone.send("status", Status(online=False, session="one", at=100.0))
    phone.send("reported", Reported(at=201.0, assignment_version=0, simulated=True))
    bridged.wait_for(lambda: row().reported is not None and row().session_id == "two", "the report and the status")
    assert row().online and row().simulated
    assert row().facts["compatible"] == ["x86-64"]
    phone.send("status", Status(online=False, session="two", at=200.0))
    bridged.wait_for(lambda: not row().online, "the last will")


def test_two_bridges_on_one_database_only_one_takes_in(bridged: SimpleNamespace) -> None:
    bridged.add_device("d1")
    first = bridged.bridge()
    second = Bridge(bridged.context)
    second.start()
    try:
        phone = bridged.phone("d1")
        phone.send("event", event(1))
        phone.wait(lambda: through(phone) == 1, "the ack")
        assert not second.connected
        first.stop()
        assert second.wait_ready(15)
        phone.send("event", event(2))
        phone.wait(lambda: through(phone) == 2, "the ack of the successor")
    finally:
        second.stop()


def test_a_burst_is_taken_in_batches(bridged: SimpleNamespace) -> None:
    bridged.add_device("d1")
    bridge = bridged.bridge()
    phone = bridged.phone("d1")
    with bridge._connection.turn:  # nothing is acknowledged until all are on their way
        numbers = range(1, 1501)
        infos = [phone._client.publish(topics.device("d1", "event"), encode(event(seq)), qos=1) for seq in numbers]
        for info in infos:
            info.wait_for_publish(15)
    phone.wait(lambda: through(phone) == 1500, "the ack of the last")
    with bridged.context.database.session(read_only=True) as session:
        assert session.exec(select(func.count()).select_from(StoredMessage)).one() == 1500
    assert len(phone.acks) < 750


def test_one_poisoned_message_holds_nobody_up(bridged: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in review: what failed in any other way than in the database came again and again, for ever."""
    bridged.add_device("d1")
    bridged.add_device("d2")
    bridge = bridged.bridge()
    original = ingest.store

    def store(session: Any, items: Any, *rest: Any) -> Any:
        for item in items:
            if item.device_id == "d2" and item.kind != "refused":
                raise OverflowError("Python int too large to convert to SQLite INTEGER")
        return original(session, items, *rest)

    monkeypatch.setattr(ingest, "store", store)
    good, bad = bridged.phone("d1"), bridged.phone("d2")
    bad.send("event", event(1))
    bad.send_raw(topics.device("d2", "want"), b'{"metadata":["a/b"]}')
    good.send("event", event(1))
    good.wait(lambda: through(good) == 1, "the good one")
    bad.wait(lambda: through(bad) == 1, "the bad one, kept as refused")
    bridged.wait_for(lambda: bridge._refused == 2, "the refusals")
    assert bridge.connected and stored(bridged.context, "d2") == [1]
