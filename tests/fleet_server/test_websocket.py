"""Danger: the gateway parses what anybody with a certificate sends: frames cut anywhere, lies about lengths."""

from __future__ import annotations

import base64
import contextlib
import os

import pytest
from edgewise_server.broker.mosquitto import SERVER_USER
from edgewise_server.errors import SettingsError
from edgewise_server.websocket.credentials import device_of
from edgewise_server.websocket.frames import Decoder, FrameError, Opcode, encode, unmask
from edgewise_server.websocket.gateway import Gateway
from edgewise_server.websocket.handshake import HandshakeError, answer, refusal
from hypothesis import given
from hypothesis import strategies as st


def masked(opcode: int, payload: bytes, *, final: bool = True, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    length = len(payload)
    if length < 126:
        size = bytes([0x80 | length])
    elif length < 1 << 16:
        size = bytes([0x80 | 126]) + length.to_bytes(2)
    else:
        size = bytes([0x80 | 127]) + length.to_bytes(8)
    return bytes([(0x80 if final else 0) | opcode]) + size + mask + unmask(payload, mask)


messages = st.lists(
    st.tuples(st.sampled_from([Opcode.BINARY, Opcode.PING, Opcode.PONG, Opcode.CLOSE]), st.binary(max_size=125)),
    max_size=8,
)


@given(messages, st.lists(st.integers(1, 40), min_size=1, max_size=60), st.binary(min_size=4, max_size=4))
def test_frames_cut_anywhere_give_the_same_bytes(frames, cuts, mask):
    stream = b"".join(masked(opcode, payload, mask=mask) for opcode, payload in frames)
    decoder, pieces, at = Decoder(), [], 0
    turn = 0
    while at < len(stream):
        count = cuts[turn % len(cuts)]
        pieces += decoder.feed(stream[at : at + count])
        at, turn = at + count, turn + 1
    data = b"".join(p.payload for p in pieces if p.opcode == Opcode.BINARY)
    assert data == b"".join(payload for opcode, payload in frames if opcode == Opcode.BINARY)
    controls = [(p.opcode, p.payload) for p in pieces if p.opcode >= Opcode.CLOSE]
    assert controls == [frame for frame in frames if frame[0] >= Opcode.CLOSE]


def test_a_fragmented_message_with_a_ping_inside_is_one_stream():
    stream = masked(2, b"ab", final=False) + masked(9, b"?") + masked(0, b"cd", final=False) + masked(0, b"")
    pieces = Decoder().feed(stream)
    assert b"".join(p.payload for p in pieces if p.opcode < 8) == b"abcd"
    assert [p.payload for p in pieces if p.opcode == Opcode.PING] == [b"?"]


def test_a_large_frame_is_handed_on_as_it_comes_and_never_held():
    decoder, payload = Decoder(), os.urandom(300_000)
    stream = masked(2, payload)
    found = b""
    for at in range(0, len(stream), 1_000):
        found += b"".join(p.payload for p in decoder.feed(stream[at : at + 1_000]))
        assert len(decoder._buffer) < 20
    assert found == payload


@pytest.mark.parametrize(
    "stream",
    [
        encode(Opcode.BINARY, b"x"),
        masked(1, b"text"),
        masked(3, b"x"),
        masked(0, b"x"),
        masked(2, b"a", final=False) + masked(2, b"b"),
        masked(9, b"x", final=False),
        masked(8, b"x" * 126),
        bytes([0xC2, 0x80, 0, 0, 0, 0]),
        bytes([0x82, 0xFF]) + (1 << 63).to_bytes(8) + bytes(4),
    ],
)
def test_what_breaks_the_protocol_is_refused(stream):
    with pytest.raises(FrameError):
        Decoder().feed(stream)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_decoder(data):
    with contextlib.suppress(FrameError):
        Decoder().feed(data)


@pytest.mark.parametrize("length", [0, 125, 126, 65_535, 65_536])
def test_what_we_send_has_the_length_that_it_says(length):
    frame = encode(Opcode.BINARY, bytes(length))
    head = 2 if length < 126 else 4 if length < 1 << 16 else 10
    assert len(frame) == head + length and frame[0] == 0x82 and not frame[1] & 0x80


def head(**changes: str) -> bytes:
    fields = {
        "Host": "broker",
        "Upgrade": "websocket",
        "Connection": "keep-alive, Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": "mqttv3.1, mqtt",
    } | changes
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"GET /mqtt HTTP/1.1\r\n{lines}\r\n".encode()


def test_the_answer_is_that_of_the_rfcs_example():
    """RFC 6455 section 1.3."""
    text = answer(head(), "/mqtt").decode()
    assert text.startswith("HTTP/1.1 101 ") and text.endswith("\r\n\r\n")
    assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in text
    assert "Sec-WebSocket-Protocol: mqtt\r\n" in text


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"\x00\xff\r\n\r\n", "400"),
        (b"GET /mqtt\r\n\r\n", "400"),
        (head().replace(b"GET", b"POST"), "405"),
        (head().replace(b"/mqtt", b"/else"), "404"),
        (head(Upgrade=""), "426"),
        (head(Connection="close"), "426"),
        (head(**{"Sec-WebSocket-Version": "8"}), "426"),
        (head(**{"Sec-WebSocket-Protocol": "chat"}), "400"),
        (head(**{"Sec-WebSocket-Key": "short"}), "400"),
        (head(**{"Sec-WebSocket-Key": base64.b64encode(bytes(17)).decode()}), "400"),
        (head().replace(b"Host: broker", b"Host"), "400"),
    ],
)
def test_other_requests_are_refused_with_a_status(request_head, status):
    with pytest.raises(HandshakeError) as refused:
        answer(request_head, "/mqtt")
    assert refused.value.status.startswith(status)
    text = refusal(refused.value).decode()
    body = text.split("\r\n\r\n", 1)[1]
    assert f"Content-Length: {len(body)}\r\n" in text


@given(st.binary(max_size=200))
def test_no_bytes_break_the_handshake(data):
    with contextlib.suppress(HandshakeError):
        answer(data, "/mqtt")


def test_the_device_is_the_certificates_common_name_and_never_the_server():
    def certificate(*names: str) -> dict[str, object]:
        return {"subject": ((("organizationalUnitName", "lab"),), *((("commonName", name),) for name in names))}

    assert device_of(certificate("cam-1")) == "cam-1"
    for none in (certificate(), certificate("a", "b"), certificate(SERVER_USER), None, {}):
        assert device_of(none) == ""


def test_a_gateway_needs_a_broker_whose_certificates_are_kept_here(context):
    with pytest.raises(SettingsError, match="managed"):
        Gateway(context)
