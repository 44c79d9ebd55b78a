"""Danger: one device, or somebody without a certificate, takes all places of the WebSocket gateway; and a connection
on which nothing is said is kept for the day on which the device is revoked."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace

import pytest
from edgewise_server.websocket import gateway as gateways
from edgewise_server.websocket.gateway import MAX_PER_DEVICE, Gateway

HEAD = (
    b"GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
)


@pytest.fixture
def port(secured) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    settings = secured.context.settings.model_copy(update={"websocket_host": "127.0.0.1", "websocket_port": number})
    made = Gateway(replace(secured.context, settings=settings))
    made.start()
    yield number
    secured.wait_for(lambda: not made.connections)
    made.stop()


def opened(port: int, tls: ssl.SSLContext) -> tuple[ssl.SSLSocket, bytes]:
    """A connection, and the first line of the answer; empty where it was ended."""
    plain = socket.create_connection(("127.0.0.1", port), 10)
    connection = tls.wrap_socket(plain, server_hostname="127.0.0.1")
    try:
        connection.sendall(HEAD)
        return connection, connection.recv(4_096).partition(b"\r\n")[0]
    except OSError:
        return connection, b""


def test_one_device_takes_no_more_than_its_places(secured, port):
    greedy, other = secured.device("cam-1"), secured.device("cam-2")
    with contextlib.ExitStack() as kept:
        answers = []
        for _ in range(MAX_PER_DEVICE + 3):
            connection, answer = opened(port, greedy)
            kept.enter_context(connection)
            answers.append(answer)
        assert [bool(answer) for answer in answers] == [True] * MAX_PER_DEVICE + [False] * 3
        connection, answer = opened(port, other)
        kept.enter_context(connection)
        assert answer == b"HTTP/1.1 101 Switching Protocols"

    # and gives them back
    def back() -> bool:
        connection, answer = opened(port, greedy)
        connection.close()
        return bool(answer)

    secured.wait_for(back)


def test_who_only_holds_places_keeps_nobody_out(secured, port, monkeypatch):
    monkeypatch.setattr(gateways, "MAX_NEW", 5)
    device = secured.device("cam-1")
    with contextlib.ExitStack() as kept:
        idle = [kept.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(12)]
        connection, answer = opened(port, device)
        kept.enter_context(connection)
        assert answer == b"HTTP/1.1 101 Switching Protocols"
        idle[0].settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert idle[0].recv(1) == b""


def test_a_connection_on_which_nothing_is_said_is_ended(secured, port, monkeypatch):
    monkeypatch.setattr(gateways, "ANSWER_S", 0.3)
    connection, answer = opened(port, secured.device("cam-1"))
    with connection:
        assert answer
        connection.settimeout(5)
        assert connection.recv(64)[:1] in (b"\x88", b"")  # a WebSocket's close frame, or the end
