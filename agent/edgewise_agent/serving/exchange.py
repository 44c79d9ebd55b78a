"""Requests and responses between the HTTP connection and what answers them. Pure values."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import msgspec

JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the HTTP server: sizes in bytes, times in seconds."""

    head_bytes: int = 16 * 1024
    headers: int = 100
    body_bytes: int = 64 * 1024 * 1024
    """Of one request, before and after content codings are undone."""
    all_bodies_bytes: int = 128 * 1024 * 1024
    """Of all requests that are received or answered at one time."""
    connections: int = 256
    pipelined: int = 32
    """Complete requests that wait on one connection before reading pauses."""
    idle_s: float = 75.0
    """Between two requests of a connection."""
    receive_s: float = 30.0
    """For a request's head, and for its body beyond what `slowest_bytes_s` grants."""
    slowest_bytes_s: int = 16 * 1024
    send_s: float = 30.0
    """For a client to take some of a response that it does not read."""
    answer_s: float = 120.0
    """For a response to be ready."""
    linger_s: float = 2.0
    """For a client to read why its request was refused, before the connection is closed."""
    offload_bytes: int = 256 * 1024
    """Bodies of this size and more are decoded and encoded beside the event loop."""


class Request(NamedTuple):
    """One complete request. Header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    keep_alive: bool


class Response(NamedTuple):
    """One response; `headers` besides the length and the connection's own."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = False


Handler = Callable[[Request], Awaitable[Response]]


def json_response(value: Any, status: int = 200) -> Response:
    """A response that holds `value` as JSON."""
    return Response(status, msgspec.json.encode(value))


def error_response(
    status: int, text: str, *, headers: tuple[tuple[str, str], ...] = (), close: bool = False
) -> Response:
    """The protocol's error object, `{"error": text}`."""
    return Response(status, msgspec.json.encode({"error": text}), headers=headers, close=close)


def render(response: Response, *, close: bool, head_only: bool) -> bytes:
    """The bytes of a response of HTTP/1.1."""
    lines = [
        f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Unknown')}",
        f"content-type: {response.content_type}",
        f"content-length: {len(response.body)}",
        *(f"{name}: {value}" for name, value in response.headers),
    ]
    if close:
        lines.append("connection: close")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head if head_only else head + response.body


_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
