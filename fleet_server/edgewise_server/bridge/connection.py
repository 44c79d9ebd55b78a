"""One MQTT 5 connection to the broker, from CONNECT to its end. A new one is made for each attempt.

The session at the broker is kept (`clean_start` false), and packets are acknowledged by hand: what was received
and not stored is delivered again, to this process or to its successor.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

import paho.mqtt.client as mqtt
from edgewise_protocol.bounds import MAX_PACKET_BYTES, MIB
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgewise_server.bridge.client import Client, Packet
from edgewise_server.bridge.errors import BridgeError
from edgewise_server.bridge.tls import broker_tls
from edgewise_server.settings import Settings

CONNECT_S: Final = 5.0
ANSWER_S: Final = 30.0
"""Longest wait for a SUBACK, or for the broker to acknowledge a publication."""
KEEPALIVE_S: Final = 30
SESSION_S: Final = 0xFFFF_FFFF
"""The session never expires (MQTT 5, 3.1.2.11.2). Mosquitto 2.0.11 lists an expiring session that has ended once more
at each SIGHUP, and reads freed memory after the client has come back; one that never expires is not in that list."""
RECEIVE_MAXIMUM: Final = 8_000
"""Packets that the broker may send before we acknowledge one: two batches, so that one comes while one is stored."""
MAX_HELD_BYTES: Final = 64 * MIB
"""Payload that is held unstored; beyond it nothing is read from the broker. It does not always keep its maximum."""


class Connection:
    """Thread-safe; one thread takes packets, in the order of arrival, and acknowledges them in that order."""

    def __init__(self, settings: Settings, client_id: str) -> None:
        """Connect, and return when the broker has accepted.

        Raises:
            BridgeError: it did not within `CONNECT_S`.
        """
        self._received: queue.SimpleQueue[Packet] = queue.SimpleQueue()
        self._held_in = 0
        self._held_out = 0
        self._returned: deque[Packet] = deque()
        self._lock = threading.Condition()
        self._outcome: str | None = None
        self._lost = threading.Event()
        self._answered: set[int] = set()
        self._client = client = Client(
            self._receive,
            self._has_room,
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(64)
        client.connect_timeout = CONNECT_S
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_answer
        client.on_unsubscribe = self._on_answer
        client.on_socket_open = _no_delay
        if settings.broker_tls:
            client.tls_set_context(broker_tls(settings))
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_S
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        try:
            client.connect(
                settings.broker_host, settings.broker_port, KEEPALIVE_S, clean_start=False, properties=properties
            )
            client.loop_start()
            with self._lock:
                self._lock.wait_for(lambda: self._outcome is not None, CONNECT_S)
                outcome = self._outcome
        except (OSError, ValueError) as error:
            self.close()
            raise BridgeError(f"no connection to {settings.broker_host}:{settings.broker_port}: {error}") from error
        if outcome != "":
            self.close()
            raise BridgeError(f"the broker does not accept the connection: {outcome or 'no answer'}")

    @property
    def turn(self) -> threading.Lock:
        """While it is held, nothing is received."""
        return self._client.turn

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    def take(self, timeout_s: float) -> Packet | None:
        """The next packet, or None when none came in time."""
        if self._returned:
            return self._returned.popleft()
        try:
            packet = self._received.get(timeout=timeout_s) if timeout_s > 0 else self._received.get_nowait()
        except queue.Empty:
            return None
        self._held_out += len(packet.payload)
        return packet

    def give_back(self, packets: Sequence[Packet]) -> None:
        """Put taken packets back, in front of all others."""
        self._returned.extendleft(reversed(packets))

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe with QoS 1, and return when the broker has said yes.

        Raises:
            BridgeError: it did not, or not in time.
        """
        options = [(name, SubscribeOptions(qos=1)) for name in filters]
        self._await(*self._client.subscribe(options), "subscribe")

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe, and return when the broker has said yes; raises `BridgeError` as `subscribe` does."""
        self._await(*self._client.unsubscribe(list(filters)), "unsubscribe")

    def _await(self, code: MQTTErrorCode, mid: int | None, what: str) -> None:
        if code != mqtt.MQTT_ERR_SUCCESS or mid is None:
            raise BridgeError(f"cannot {what}: {mqtt.error_string(code)}")
        with self._lock:
            if not self._lock.wait_for(lambda: mid in self._answered or self.lost, ANSWER_S) or self.lost:
                raise BridgeError(f"the broker did not answer to {what}")
            self._answered.discard(mid)

    def publish(self, messages: Sequence[tuple[str, bytes, bool]]) -> None:
        """Publish (topic, payload, retain) in order with QoS 1; return when the broker has acknowledged all.

        Raises:
            BridgeError: it did not within `ANSWER_S`, or the connection was lost.
        """
        sent = [self.send(topic, payload, retain=retain) for topic, payload, retain in messages]
        deadline = time.monotonic() + ANSWER_S
        for info in sent:
            try:
                # paho waits on, where the connection is lost
                while not info.is_published() and not self.lost and (left := deadline - time.monotonic()) > 0:
                    info.wait_for_publish(min(left, 0.25))
                done = info.is_published()
            except (ValueError, RuntimeError) as error:
                raise BridgeError(f"a publication failed: {error}") from error
            if not done or self.lost:
                raise BridgeError("the broker did not acknowledge a publication")

    def send(self, topic: str, payload: bytes, *, retain: bool = False) -> mqtt.MQTTMessageInfo:
        """Publish with QoS 1 without waiting."""
        return self._client.publish(topic, payload, qos=1, retain=retain)

    def tell(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Publish with QoS 0 what is only said to be heard: a loss makes the other side ask again."""
        self._client.tell(messages)

    def acknowledge(self, packets: Sequence[Packet]) -> None:
        """Tell the broker that packets are stored. On a lost connection it does nothing: they come again."""
        self._client.acknowledge([packet.mid for packet in packets if packet.qos])

    def give_up(self) -> None:
        """Have the owner end the connection; any thread may say so."""
        self._lost.set()

    def close(self) -> None:
        """End the connection; the broker keeps the session. The owner's thread calls it, once or twice."""
        self._lost.set()
        self._client.disconnect()
        self._client.loop_stop()

    def _receive(self, packet: Packet) -> None:
        self._held_in += len(packet.payload)  # written by one thread only, as is the other: no lock
        self._received.put(packet)

    def _has_room(self) -> bool:
        return self._held_in - self._held_out < MAX_HELD_BYTES

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        with self._lock:
            self._outcome = str(reason) if reason.is_failure else ""
            self._lock.notify_all()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._lost.set()
        with self._lock:
            if self._outcome is None:
                self._outcome = str(reason)
            self._lock.notify_all()

    def _on_answer(self, _client: Any, _data: Any, mid: int, _reasons: Any, _properties: Any) -> None:
        with self._lock:
            self._answered.add(mid)
            self._lock.notify_all()


def _no_delay(_client: Any, _data: Any, connection: Any) -> None:
    """A PUBACK followed by a small packet would otherwise wait some 40 ms."""
    with contextlib.suppress(OSError, AttributeError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
