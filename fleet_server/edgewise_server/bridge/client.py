"""paho's client with what a server needs of it: a bound on packets, and little work for each of many small ones.

paho obeys no Maximum Packet Size of its own (MQTT 5, 3.1.2.11.4) and allocates what a broker announces. It reads each
packet with three calls, makes five objects of it, and wakes its thread for each acknowledgement. What is replaced
here is that path only; connecting, keeping alive and publishing with QoS 1 stay paho's.
"""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import paho.mqtt.client as mqtt
from edgewise_protocol.bounds import KIB, MAX_PACKET_BYTES
from paho.mqtt.enums import MQTTErrorCode

READ_BYTES: Final = 64 * KIB
ROOM_S: Final = 0.02
_PUBACK: Final = struct.Struct("!BBH")
_PUBACK_COMMAND: Final = 0x40
_PUBLISH_COMMAND: Final = 0x30

log = logging.getLogger(__name__)


class PacketTooLargeError(ConnectionError):
    """The broker announced a packet beyond the bound; the connection is ended."""


@dataclass(slots=True)
class Packet:
    """A PUBLISH as it came; `mid` is its packet id, for the acknowledgement."""

    topic: str
    payload: bytes
    retained: bool
    mid: int
    qos: int


class Client(mqtt.Client):
    """paho's client with manual acknowledgement; its thread reads, any thread acknowledges.

    Args:
        on_packet: called on paho's thread with each PUBLISH; must not block.
        has_room: whether more may be read now; where not, it is asked again after `ROOM_S`.
        options: of paho's client.
    """

    def __init__(
        self, on_packet: Callable[[Packet], None], has_room: Callable[[], bool], *arguments: Any, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.manual_ack_set(True)
        self.turn = threading.Lock()
        """Held while packets are read."""
        self._on_packet = on_packet
        self._has_room = has_room
        self._pause = threading.Event()
        self._buffer = b""
        self._position = 0
        self._buffered_of: Any = None

    def acknowledge(self, packet_ids: Sequence[int]) -> None:
        """Send a PUBACK for each of many QoS 1 packets, in this order, in one write."""
        if packet_ids:
            packets = b"".join(_PUBACK.pack(_PUBACK_COMMAND, 2, packet_id) for packet_id in packet_ids)
            self._packet_queue(_PUBACK_COMMAND, packets, 0, 0)

    def tell(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Publish many short (topic, payload) with QoS 0, in one write."""
        packets = bytearray()
        for topic, payload in messages:
            name = topic.encode()
            packets.append(_PUBLISH_COMMAND)
            packets += _length(len(name) + len(payload) + 3)
            packets += len(name).to_bytes(2, "big") + name + b"\0" + payload
        if packets:
            # As a PUBACK, of whose end paho tells nobody: it holds an object for each PUBLISH that it knows of.
            self._packet_queue(_PUBACK_COMMAND, bytes(packets), 0, 0)

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Read until the buffer is empty, of which no `select` tells, and write in between."""
        if not self._has_room():
            self._pause.wait(ROOM_S)
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        with self.turn:
            while True:
                code = super().loop_read(max_packets)
                if code == MQTTErrorCode.MQTT_ERR_SUCCESS and self._out_packet:
                    code = self.loop_write()
                if code != MQTTErrorCode.MQTT_ERR_SUCCESS or self._position >= len(self._buffer):
                    return code

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > MAX_PACKET_BYTES:
            log.error("the broker sends a packet of %d bytes; %d are allowed; leaving it", bufsize, MAX_PACKET_BYTES)
            raise PacketTooLargeError(f"a packet of {bufsize} bytes")
        if self._buffered_of is not self._sock:
            self._buffer, self._position, self._buffered_of = b"", 0, self._sock
        if self._position >= len(self._buffer):
            if bufsize >= READ_BYTES:
                return super()._sock_recv(bufsize)
            self._buffer, self._position = super()._sock_recv(READ_BYTES), 0
        first, self._position = self._position, self._position + bufsize
        return self._buffer[first : self._position]

    def _handle_publish(self) -> MQTTErrorCode:
        """MQTT 5, 3.3, without the properties: nothing here uses them, and no topic alias was offered."""
        head, data = self._in_packet["command"], self._in_packet["packet"]
        qos, size = (head & 6) >> 1, len(data)
        after_topic = 2 + int.from_bytes(data[:2], "big")
        position = after_topic + (2 if qos else 0)
        length, shift = 0, 0
        while position < size and shift < 28:
            byte = data[position]
            position += 1
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        else:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        if qos > 1 or position + length > size:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        topic = data[2:after_topic].decode("utf-8", "replace")
        mid = int.from_bytes(data[after_topic : after_topic + 2], "big") if qos else 0
        self._on_packet(Packet(topic, bytes(data[position + length :]), bool(head & 1), mid, qos))
        return MQTTErrorCode.MQTT_ERR_SUCCESS


def _length(number: int) -> bytes:
    """A variable byte integer (MQTT 5, 1.5.5)."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
