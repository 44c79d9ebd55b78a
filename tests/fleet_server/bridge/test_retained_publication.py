"""Danger: a device is told of what the broker does not hold, or a broker that forgot is never filled again."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from edgewise_protocol import topics
from edgewise_protocol.bounds import CHUNK_BYTES
from edgewise_protocol.messages import Want, WantedChunks
from edgewise_protocol.targets import SignedFile, TargetCustom
from edgewise_server.bridge import publishing
from edgewise_server.models.assignments import Assignment
from edgewise_server.models.outgoing import BrokerState, Outgoing
from edgewise_server.services import blobs, outgoing
from msgspec import to_builtins
from sqlmodel import col, select


def unpublished(context: Any) -> int:
    with context.database.session(read_only=True) as session:
        return len(session.exec(select(Outgoing.id).where(col(Outgoing.mark).is_(None))).all())


def add_blob(context: Any, data: bytes) -> tuple[str, str]:
    with context.database.session() as session:
        blob = blobs.add(session, context.blobs, data)
        outgoing.retain_blob(session, blob.sha256)
        return blob.sha256, blob.chunk_index


def read(bridged: SimpleNamespace, phone: Any, *names: str) -> dict[str, bytes]:
    phone.retained.clear()
    phone.listen(*names)
    phone.wait(lambda: set(names) <= phone.retained.keys(), f"{len(names)} retained topics")
    return dict(phone.retained)


def is_kept(phone: Any, name: str) -> bool:
    """Whether the broker has a retained message: it sends it before the sentinel's."""
    phone.retained.clear()
    phone.listen(name, topics.SENTINEL)
    phone.wait(lambda: topics.SENTINEL in phone.retained, "the sentinel")
    return name in phone.retained


def test_everything_is_published_in_the_order_of_its_rows(bridged: SimpleNamespace) -> None:
    data = bytes(range(256)) * 1200
    sha256, index = add_blob(bridged.context, data)
    with bridged.context.database.session() as session:
        outgoing.retain(session, topics.device("d1", "assignment"), b"signed")
    phone = bridged.phone("d1")
    seen: list[str] = []
    original = phone._on_message

    def note(client: Any, userdata: Any, message: Any) -> None:
        seen.append(message.topic)
        original(client, userdata, message)

    phone._client.on_message = note
    phone.listen("ew/1/blob/#", "ew/1/dev/d1/assignment", topics.SENTINEL)
    bridged.bridge()
    chunks = [topics.blob(sha256, n) for n in range(3)]
    # iotcore keeps a log for each filter, so order holds only within one
    wanted = {*chunks, topics.blob(index, 0), topics.device("d1", "assignment"), topics.SENTINEL}
    phone.wait(lambda: wanted <= phone.retained.keys(), "everything")
    assert b"".join(phone.retained[name] for name in chunks) == data
    if type(bridged.broker).__name__ == "Mosquitto":
        assert seen == [*chunks, topics.blob(index, 0), topics.device("d1", "assignment"), topics.SENTINEL]


def test_a_broker_that_lost_its_state_gets_everything_again(bridged: SimpleNamespace) -> None:
    sha256, _ = add_blob(bridged.context, b"x" * (CHUNK_BYTES + 5))
    with bridged.context.database.session() as session:
        outgoing.retain(session, topics.metadata("1.root.json"), b"root")
        outgoing.retain(session, topics.metadata("gone.json"), b"gone")
        outgoing.clear(session, topics.metadata("gone.json"))
    bridged.bridge()
    bridged.wait_for(lambda: unpublished(bridged.context) == 0, "the first publication")
    # The mark is last. iotcore, stopped while it is on its way, leaves the connection open until the keepalive ends it.
    watcher = bridged.phone("watcher")
    bridged.wait_for(lambda: is_kept(watcher, topics.BROKER_STATE), "the broker's mark")
    bridged.broker.stop()
    bridged.broker.start()
    bridged.wait_for(lambda: unpublished(bridged.context) == 0, "nothing pending")
    phone = bridged.phone("reader")
    wanted = [topics.blob(sha256, 0), topics.blob(sha256, 1), topics.metadata("1.root.json"), topics.SENTINEL]
    found = read(bridged, phone, *wanted)
    assert found[topics.blob(sha256, 1)] == b"x" * 5
    assert found[topics.metadata("1.root.json")] == b"root"
    assert topics.metadata("gone.json") not in found


def test_a_broker_with_its_state_gets_nothing_again(bridged: SimpleNamespace) -> None:
    add_blob(bridged.context, b"y" * 10)
    bridge = bridged.bridge()
    bridged.wait_for(lambda: unpublished(bridged.context) == 0, "the first publication")
    with bridged.context.database.session(read_only=True) as session:
        before = session.exec(select(BrokerState.mark)).one()
    watcher = bridged.phone("watcher")
    watcher.listen(topics.BROKER_STATE)
    watcher.wait(
        lambda: json.loads(watcher.retained.get(topics.BROKER_STATE, b"{}")).get("mark") == before, "the broker's mark"
    )
    bridge.stop()
    bridged.bridge()
    assert unpublished(bridged.context) == 0
    with bridged.context.database.session(read_only=True) as session:
        assert session.exec(select(BrokerState.mark)).one() == before


def test_an_older_broker_state_gets_only_what_came_after(bridged: SimpleNamespace) -> None:
    with bridged.context.database.session() as session:
        state = publishing.state(session)
        for n in range(5):
            outgoing.retain(session, topics.metadata(f"{n}.json"), b"m")
        for n, row in enumerate(session.exec(select(Outgoing).order_by(col(Outgoing.id))), 1):
            row.mark = n
        state.mark = 5
        session.flush()
        assert publishing.reconcile(session, publishing.Mark(state.instance, 3)) == 2
        assert publishing.reconcile(session, publishing.Mark(state.instance, 5)) == 0
        assert publishing.reconcile(session, publishing.Mark("another fleet", 9)) == 3
        session.rollback()


def test_want_publishes_again_what_the_broker_dropped(bridged: SimpleNamespace) -> None:
    bridged.add_device("d1")
    sha256, _ = add_blob(bridged.context, b"z" * (2 * CHUNK_BYTES))
    with bridged.context.database.session() as session:
        outgoing.retain(session, topics.metadata("2.targets.json"), b"targets")
    bridged.bridge()
    bridged.wait_for(lambda: unpublished(bridged.context) == 0, "the first publication")
    phone = bridged.phone("d1")
    lost = [topics.blob(sha256, 1), topics.metadata("2.targets.json")]
    for name in lost:
        phone.send_raw(name, b"", retain=True)
    phone.listen(*lost)
    phone.send(
        "want", Want(blobs=(WantedChunks(sha256=sha256, chunks=(1,)),), metadata=("2.targets.json", "unknown.json"))
    )
    phone.wait(lambda: set(lost) <= phone.retained.keys(), "what was wanted")
    assert phone.retained[lost[0]] == b"z" * CHUNK_BYTES


def test_want_brings_back_a_collected_blob_only_for_the_device_that_is_assigned_it(bridged: SimpleNamespace) -> None:
    bridged.add_device("d1")
    bridged.add_device("d2")
    with bridged.context.database.session() as session:
        blob = blobs.add(session, bridged.context.blobs, b"model")
        file = SignedFile(
            path="lab/digits/p/1.ewb",
            length=5,
            sha256=blob.sha256,
            custom=TargetCustom(chunk_index=blob.chunk_index, model="digits"),
        )
        session.add(
            Assignment(
                device_id="d1",
                version=1,
                channel="lab",
                deployment="none",
                bundles=[to_builtins(file)],
                confirm_within_s=60,
                payload=b"",
                issued_at=0.0,
                expires_at=0.0,
            )
        )
        sha256, index = blob.sha256, blob.chunk_index
    bridged.bridge()
    want = Want(blobs=(WantedChunks(sha256=sha256, chunks=(0,)), WantedChunks(sha256=index, chunks=(0,))))
    other = bridged.phone("d2")
    other.listen(topics.blob(sha256, 0))
    other.send("want", want)
    with pytest.raises(AssertionError, match="timed out"):
        other.wait(lambda: other.retained, "nothing", timeout_s=0.5)
    phone = bridged.phone("d1")
    phone.listen(topics.blob(sha256, 0), topics.blob(index, 0))
    phone.send("want", want)
    phone.wait(lambda: len(phone.retained) == 2, "blob and index")


def test_a_change_while_its_older_form_is_being_published_is_published_too(
    bridged: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = topics.metadata("timestamp.json")
    with bridged.context.database.session() as session:
        outgoing.retain(session, topic, b"old")
    changed = threading.Event()
    original = publishing.Connection.publish

    def publish(self: Any, messages: Any) -> None:
        original(self, messages)
        if not changed.is_set() and any(name == topic for name, _, _ in messages):
            changed.set()
            with bridged.context.database.session() as session:
                outgoing.clear(session, topic)

    monkeypatch.setattr(publishing.Connection, "publish", publish)
    bridged.bridge()
    assert changed.wait(15)
    bridged.wait_for(lambda: unpublished(bridged.context) == 0, "everything published")
    phone = bridged.phone("reader")
    phone.listen(topic, topics.SENTINEL)
    phone.wait(lambda: topics.SENTINEL in phone.retained, "the sentinel")
    assert topic not in phone.retained


def test_what_a_device_had_retained_is_cleared_with_it(bridged: SimpleNamespace) -> None:
    topic = topics.device("d1", "status")
    phone = bridged.phone("d1")
    phone.send_raw(topic, b'{"online":false,"session":"s"}', retain=True)
    with bridged.context.database.session() as session:
        outgoing.clear(session, topic)
        outgoing.clear(session, topic)
    bridged.bridge()
    bridged.wait_for(lambda: unpublished(bridged.context) == 0, "the clearing")
    other = bridged.phone("other")
    other.listen(topic, topics.SENTINEL)
    other.wait(lambda: topics.SENTINEL in other.retained, "the sentinel")
    assert topic not in other.retained
