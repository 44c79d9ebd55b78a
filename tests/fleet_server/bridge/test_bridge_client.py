"""Danger: a broker, or one device behind it, that sends more than was agreed takes the server's memory or its time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from edgewise_protocol import topics
from edgewise_protocol.bounds import MAX_PACKET_BYTES
from edgewise_protocol.messages import Event, encode
from edgewise_server.bridge.acks import FLUSH_S, AckBox
from edgewise_server.bridge.client import Client, Packet
from edgewise_server.bridge.connection import ANSWER_S, Connection
from edgewise_server.bridge.errors import BridgeError
from edgewise_server.bridge.pacing import BURST_S, Pacer
from edgewise_server.models.telemetry import StoredMessage
from edgewise_server.settings import Settings
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from sqlmodel import func, select

CONNACK = b"\x20\x03\0\0\0"


def length(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


@pytest.fixture
def hostile() -> Iterator[SimpleNamespace]:
    """A broker that accepts, and then says what the test has it say."""
    listener = socket.create_server(("127.0.0.1", 0))
    accepted: list[socket.socket] = []
    ready = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        connection.recv(1024)
        connection.sendall(CONNACK)
        accepted.append(connection)
        ready.set()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield SimpleNamespace(port=listener.getsockname()[1], accepted=accepted, ready=ready)
    for connection in accepted:
        connection.close()
    listener.close()


def connect(hostile: SimpleNamespace, tmp_path: Any) -> Connection:
    made = Connection(Settings(state=tmp_path, broker_port=hostile.port), "bridge")
    assert hostile.ready.wait(10)
    return made


def test_a_packet_beyond_the_bound_ends_the_connection_before_it_is_read(
    hostile: SimpleNamespace, tmp_path: Any, kit: Any
) -> None:
    connection = connect(hostile, tmp_path)
    try:
        hostile.accepted[0].sendall(b"\x32" + length(MAX_PACKET_BYTES + 1) + b"\0\x04topi")
        assert connection._lost.wait(10)
        assert connection.take(0.0) is None
    finally:
        connection.close()


def test_packets_come_whole_however_they_are_cut(hostile: SimpleNamespace, tmp_path: Any) -> None:
    connection = connect(hostile, tmp_path)
    try:
        sent = [(f"t/{n}", bytes([n % 256]) * (n * 37 % 90_000)) for n in range(120)]
        wire = b""
        for n, (topic, payload) in enumerate(sent):
            name = topic.encode()
            body = len(name).to_bytes(2, "big") + name + (n + 1).to_bytes(2, "big") + b"\0" + payload
            wire += b"\x32" + length(len(body)) + body
        for first in range(0, len(wire), 10_007):
            hostile.accepted[0].sendall(wire[first : first + 10_007])
        found = [connection.take(10) for _ in sent]
        assert [(p.topic, p.payload, p.mid) for p in found if p] == [(t, p, n + 1) for n, (t, p) in enumerate(sent)]
        connection.acknowledge([p for p in found if p])
        acks = b""
        while len(acks) < 4 * len(sent):
            acks += hostile.accepted[0].recv(4096)
        assert acks == b"".join(b"\x40\x02" + (n + 1).to_bytes(2, "big") for n in range(len(sent)))
    finally:
        connection.close()


def test_a_publication_is_given_up_with_its_connection(hostile: SimpleNamespace, tmp_path: Any) -> None:
    """paho waits on for an answer that cannot come any more."""
    connection = connect(hostile, tmp_path)
    try:
        lost = threading.Timer(0.3, hostile.accepted[0].close)
        lost.start()
        began = time.monotonic()
        with pytest.raises(BridgeError, match="did not acknowledge"):
            connection.publish([("t", b"x", True)])
        assert time.monotonic() - began < ANSWER_S / 2
        lost.join()
    finally:
        connection.close()


@given(st.integers(0, 15), st.binary(max_size=60))
def test_no_packet_breaks_the_reader(flags: int, data: bytes) -> None:
    found: list[Packet] = []
    client = Client(
        found.append, lambda: True, CallbackAPIVersion.VERSION2, client_id="c", protocol=MQTTProtocolVersion.MQTTv5
    )
    client._in_packet.update(command=0x30 | flags, packet=bytearray(data))
    code = client._handle_publish()
    assert (code == MQTTErrorCode.MQTT_ERR_SUCCESS) == (len(found) == 1)
    assert code in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_PROTOCOL)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 2)), max_size=300))
def test_no_device_is_admitted_beyond_its_rate(order: list[tuple[str, float]]) -> None:
    pacer, now, admitted = Pacer(2.0), 100.0, {"a": 0, "b": 0}
    for device, passed in order:
        now += passed
        admitted[device] += pacer.admit(device, now)
        assert admitted[device] <= 2 * 2.0 * BURST_S + 2.0 * (now - 100.0) + 1


def test_a_device_in_debt_is_told_nothing_until_it_has_paid() -> None:
    pacer, box = Pacer(2.0), AckBox()
    for seq in range(1, 31):
        assert pacer.admit("d", 0.0)
        box.put("d", "s", seq)
    box.put("e", "s", 1)
    assert box.take(0.0, pacer.may_go_on, wait=False) == [("e", "s", 1)]
    assert box.take(4.0, pacer.may_go_on, wait=False) == []
    assert box.take(5.5, pacer.may_go_on, wait=False) == [("d", "s", 30)]
    assert box.take(9.0, pacer.may_go_on, wait=False) == []


def test_a_busy_bridge_says_only_the_newest() -> None:
    box = AckBox()
    box.put("d", "s", 1)
    assert box.take(100.0, lambda *_: True, wait=True) == [("d", "s", 1)]
    for through in (2, 4, 3):
        box.put("d", "s", through)
        assert box.take(100.0 + FLUSH_S / 2, lambda *_: True, wait=True) == []
    assert box.take(100.0 + 2 * FLUSH_S, lambda *_: True, wait=True) == [("d", "s", 4)]


def test_a_device_that_floods_is_cut_and_others_are_heard(bridged: SimpleNamespace) -> None:
    object.__setattr__(bridged.context.settings, "device_messages_per_s", 1.0)
    bridged.add_device("d1")
    bridged.add_device("d2")
    bridge = bridged.bridge()
    flooder, quiet = bridged.phone("d1"), bridged.phone("d2")
    for seq in range(1, 101):
        payload = encode(Event(stream="s", seq=seq, at=1.0, kind="agent"))
        flooder._client.publish(topics.device("d1", "event"), payload, qos=1)
    bridged.wait_for(lambda: bridge._dropped >= 50, "the flood to be cut")
    quiet.send("event", Event(stream="s", seq=1, at=1.0, kind="agent"))
    quiet.wait(lambda: any(ack.through == 1 for ack in quiet.acks), "the other device's ack")
    with bridged.context.database.session(read_only=True) as session:
        statement = select(func.count()).select_from(StoredMessage).where(StoredMessage.device_id == "d1")
        assert session.exec(statement).one() <= 30
