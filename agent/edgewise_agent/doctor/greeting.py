"""One MQTT 5 CONNECT and its answer, then an orderly DISCONNECT (OASIS MQTT 5.0, sections 3.1, 3.2, 3.14).

No will, no subscription, a session that ends with the connection: the broker keeps nothing of it.
"""

from __future__ import annotations

import socket
import time
from typing import Final

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

_CONNECT: Final = 0x10
_CONNACK: Final = 0x20
_DISCONNECT: Final = b"\xe0\x00"
_CLEAN_START: Final = 0x02
_KEEPALIVE_S: Final = 10
_MAX_ANSWER: Final = 16_384
_MIN_CONNACK: Final = 2
_FAILURE: Final = 0x80


def greet(sock: socket.socket, client_id: str, timeout_s: float) -> str:
    """Say CONNECT; empty if the broker accepts, else its reason in words.

    Raises:
        OSError: the connection broke, or no answer came in time.
        ValueError: what answers is no MQTT broker.
    """
    deadline = time.monotonic() + timeout_s
    sock.sendall(connect_packet(client_id))
    head = _read(sock, 1, deadline)[0]
    if head != _CONNACK:
        raise ValueError("what listens there is not an MQTT 5 broker")
    body = _read(sock, _length(sock, deadline), deadline)
    if len(body) < _MIN_CONNACK:
        raise ValueError("what listens there is not an MQTT 5 broker")
    reason = body[1]
    if reason < _FAILURE:
        sock.sendall(_DISCONNECT)
        return ""
    return f"the broker refuses this device: {_reason(reason)}"


def connect_packet(client_id: str) -> bytes:
    """A CONNECT packet: clean start, no will, no user name."""
    name = client_id.encode()
    body = b"\x00\x04MQTT\x05" + bytes((_CLEAN_START,)) + _KEEPALIVE_S.to_bytes(2, "big") + b"\x00"
    body += len(name).to_bytes(2, "big") + name
    return bytes((_CONNECT,)) + variable_length(len(body)) + body


def variable_length(value: int) -> bytes:
    """A variable byte integer, section 1.5.5."""
    out = bytearray()
    while True:
        value, digit = divmod(value, 128)
        out.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(out)


def _length(sock: socket.socket, deadline: float) -> int:
    value = 0
    for place in range(4):
        byte = _read(sock, 1, deadline)[0]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            if value > _MAX_ANSWER:
                break
            return value
    raise ValueError("the broker's answer is longer than an MQTT CONNACK can be")


def _read(sock: socket.socket, count: int, deadline: float) -> bytes:
    data = b""
    while len(data) < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it did not answer the MQTT greeting in time")
        sock.settimeout(left)
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionError("it closed the connection at the MQTT greeting")
        data += part
    return data


def _reason(value: int) -> str:
    try:
        return str(ReasonCode(PacketTypes.CONNACK, identifier=value)).lower()
    except (KeyError, AssertionError, ValueError):
        return f"reason code 0x{value:02x}"
