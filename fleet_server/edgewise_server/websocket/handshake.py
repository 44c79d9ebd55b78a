"""The opening handshake of a WebSocket (RFC 6455 section 4.2) for the subprotocol `mqtt` (MQTT 5.0 section 6). Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final

MAX_HEAD: Final = 8_192
"""Bytes of a request's head."""
_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SUBPROTOCOL: Final = "mqtt"


class HandshakeError(Exception):
    """The request is not one for MQTT over WebSocket; `status` is the HTTP status that says so."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


def answer(head: bytes, path: str) -> bytes:
    """The server's answer to a request's head, which ends with an empty line.

    Raises:
        HandshakeError: what is wrong with the request.
    """
    try:
        first, *lines = head.decode("ascii").split("\r\n\r\n", 1)[0].split("\r\n")
        method, target, version = first.split(" ")
    except ValueError as error:
        raise HandshakeError("400 Bad Request", "this is not an HTTP request") from error
    if method != "GET" or version != "HTTP/1.1":
        raise HandshakeError("405 Method Not Allowed", "a WebSocket begins with GET and HTTP/1.1")
    if target.partition("?")[0] != path:
        raise HandshakeError("404 Not Found", f"MQTT is at {path}")
    fields = _fields(lines)
    if "websocket" not in _words(fields, "upgrade") or "upgrade" not in _words(fields, "connection"):
        raise HandshakeError("426 Upgrade Required", "this is not a request for a WebSocket")
    if fields.get("sec-websocket-version") != "13":
        raise HandshakeError("426 Upgrade Required", "the WebSocket's version must be 13")
    if _SUBPROTOCOL not in _words(fields, "sec-websocket-protocol"):
        raise HandshakeError("400 Bad Request", "the subprotocol `mqtt` is not offered")
    key = fields.get("sec-websocket-key", "")
    try:
        valid = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        valid = False
    if not valid:
        raise HandshakeError("400 Bad Request", "Sec-WebSocket-Key is not 16 bytes in base64")
    # SHA-1 is what RFC 6455 asks for; nothing is protected by it.
    digest = base64.b64encode(hashlib.sha1((key + _GUID).encode(), usedforsecurity=False).digest()).decode()
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {digest}\r\nSec-WebSocket-Protocol: {_SUBPROTOCOL}\r\n\r\n"
    ).encode()


def refusal(error: HandshakeError) -> bytes:
    """The HTTP answer to a request that is refused; the connection is closed after it."""
    text = f"{error}\n"
    return (
        f"HTTP/1.1 {error.status}\r\nConnection: close\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(text)}\r\nSec-WebSocket-Version: 13\r\n\r\n{text}"
    ).encode()


def _fields(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise HandshakeError("400 Bad Request", "a header line is malformed")
        key = name.lower()
        found[key] = f"{found[key]}, {value.strip()}" if key in found else value.strip()
    return found


def _words(fields: dict[str, str], name: str) -> list[str]:
    return [word.strip().lower() for word in fields.get(name, "").split(",")]
