"""The danger: a client that is slow, greedy or malformed and takes the server with it, or gets another's answer."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from edgewise_agent.serving.exchange import Limits
from edgewise_agent.serving.metrics import Metric, Sample

INFER = "/v2/models/scale/infer"


def infer_body(*rows: float) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": list(rows)}
    return json.dumps({"inputs": [tensor]}).encode()


def post(body: bytes, target: str = INFER, *headers: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "host: device", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def get(target: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "host: device", *headers, "", ""]).encode()


class Client:
    """A plain socket that reads one response at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=15)
        self.buffer = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def response(self, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        length = 0 if head_only else int(headers.get("content-length", 0))
        while len(self.buffer) < length:
            self._more()
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return int(first.split()[1]), headers, body

    def closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _more(self) -> None:
        data = self.socket.recv(65536)
        assert data, "the server closed the connection"
        self.buffer += data


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    pause, end = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        pause.wait(0.001)


@pytest.fixture
def connect(models: Any, serve: Any) -> Iterator[Any]:
    models.activate_scale(1, 2.0)
    with contextlib.ExitStack() as stack:
        servers: dict[Any, Any] = {}

        def make(limits: Limits | None = None) -> Client:
            if limits not in servers:
                servers[limits] = stack.enter_context(serve(models.table, limits))
            client = Client(servers[limits].port)
            stack.callback(client.socket.close)
            return client

        make.servers = servers  # type: ignore[attr-defined]
        yield make


def answer(response: tuple[int, dict[str, str], bytes]) -> list[float]:
    status, _, body = response
    assert status == 200, body
    found: list[float] = json.loads(body)["outputs"][0]["data"]
    return found


def test_json_without_extensions(connect: Any) -> None:
    client = connect()
    client.send(post(infer_body(1, 2.5, -3)))
    status, headers, body = client.response()
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body) == {
        "model_name": "scale",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [2.0, 5.0, -6.0]}],
    }


def test_pipelined_requests_are_answered_in_order(connect: Any) -> None:
    client = connect(Limits(pipelined=4))
    client.send(b"".join(post(infer_body(i, i, i)) if i % 3 else get("/v2/health/live") for i in range(60)))
    for i in range(60):
        if i % 3:
            assert answer(client.response())[0] == 2 * i
        else:
            assert json.loads(client.response()[2]) == {"live": True}


def test_a_request_may_come_byte_by_byte(connect: Any) -> None:
    client = connect()
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in post(infer_body(4, 5, 6)):
        client.send(bytes([byte]))
    assert answer(client.response()) == [8, 10, 12]


def test_chunked_bodies_and_expect_continue(connect: Any) -> None:
    client = connect()
    body = infer_body(1, 1, 1)
    client.send(f"POST {INFER} HTTP/1.1\r\nhost: d\r\ntransfer-encoding: chunked\r\n\r\n".encode())
    for part in (body[:10], body[10:]):
        client.send(f"{len(part):x}\r\n".encode() + part + b"\r\n")
    client.send(b"0\r\n\r\n")
    assert answer(client.response()) == [2, 2, 2]
    head, _, rest = post(body, INFER, "expect: 100-continue").partition(b"\r\n\r\n")
    client.send(head + b"\r\n\r\n")
    assert client.response()[0] == 100
    client.send(rest)
    assert answer(client.response()) == [2, 2, 2]


def test_connections_close_when_asked(connect: Any) -> None:
    client = connect()
    client.send(get("/v2/health/ready", "connection: close"))
    status, headers, _ = client.response()
    assert (status, headers["connection"]) == (200, "close")
    assert client.closed()


def test_an_upgrade_is_ignored(connect: Any) -> None:
    """Java's client asks for h2c with every first request."""
    client = connect()
    client.send(post(infer_body(1, 2, 3), INFER, "connection: Upgrade, HTTP2-Settings", "upgrade: h2c"))
    assert answer(client.response()) == [2, 4, 6]
    client.send(get("/v2/health/live", "connection: upgrade", "upgrade: websocket") + post(infer_body(5, 5, 5)))
    assert client.response()[0] == 200
    assert answer(client.response()) == [10, 10, 10]
    client.send(b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n")
    assert client.response()[0] == 400


def test_head_has_no_body(connect: Any) -> None:
    client = connect()
    client.send(get("/v2", method="HEAD") + get("/v2"))
    status, headers, _ = client.response(head_only=True)
    assert status == 200
    assert client.response()[1]["content-length"] == headers["content-length"]


@pytest.mark.parametrize(
    ("request_bytes", "status", "says"),
    [
        (get("/nothing"), 404, "there is nothing at /nothing"),
        (get("/v2/models/other"), 404, "no model 'other'"),
        (get("/v2/models/scale/versions/9/ready"), 404, "active in version 1, not 9"),
        (post(infer_body(1, 2, 3), "/v2/models/other/infer"), 404, "no model 'other'"),
        (post(b"", "/v2"), 405, "takes GET"),
        (get(INFER), 405, "takes POST"),
        (get(INFER, method="DELETE"), 405, "takes POST"),
        (f"POST {INFER} HTTP/1.1\r\nhost: d\r\n\r\n".encode(), 411, "Content-Length"),
        (post(b"not json"), 400, "not an inference request"),
        (post(infer_body(1, 2)), 400, "that is 3 elements; got 2"),
        (post(b"x", INFER, "content-encoding: br"), 415, "gzip, deflate"),
        (post(b"x", INFER, "content-encoding: gzip"), 400, "truncated"),
        (post(b"xy", INFER, "content-encoding: gzip"), 400, "decompressed"),
        (post(b"x", INFER, "inference-header-content-length: -3"), 400, "not a number"),
    ],
)
def test_refusals_keep_the_connection(connect: Any, request_bytes: bytes, status: int, says: str) -> None:
    client = connect()
    client.send(request_bytes)
    found, headers, body = client.response()
    assert found == status
    assert says in json.loads(body)["error"]
    assert ("allow" in headers) == (status == 405)
    client.send(post(infer_body(1, 2, 3)))
    assert answer(client.response()) == [2, 4, 6]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50, 400),
        (b"POST /v2 HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\ncontent-length: -5\r\n\r\n", 400),
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 30 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nlong: " + b"x" * 3000, 431),
        (post(b"", INFER).replace(b"content-length: 0", b"content-length: 5000"), 413),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1388\r\n" + b"x" * 5000, 413),
    ],
)
def test_broken_bounds_are_answered_then_the_connection_is_closed(
    connect: Any, request_bytes: bytes, status: int
) -> None:
    client = connect(Limits(head_bytes=2048, headers=20, body_bytes=4096))
    client.send(get("/v2/health/live"))
    assert client.response()[0] == 200
    client.send(request_bytes)
    found, headers, body = client.response()
    assert (found, headers["connection"]) == (status, "close")
    assert json.loads(body)["error"]
    assert client.closed()


def test_a_bomb_is_too_large(connect: Any) -> None:
    import gzip

    client = connect(Limits(body_bytes=100_000))
    client.send(post(gzip.compress(b" " * 10_000_000), INFER, "content-encoding: gzip"))
    assert client.response()[0] == 413


def test_bodies_share_a_budget(connect: Any) -> None:
    limits = Limits(body_bytes=1000, all_bodies_bytes=1500)
    first, second = connect(limits), connect(limits)
    first.send(post(b" " * 1000)[:-1])
    (server,) = connect.servers.values()
    until(lambda: server.server._bodies >= 900)
    second.send(post(b" " * 1000))
    assert second.response()[0] == 503
    first.send(b" ")
    assert first.response()[0] == 400
    third = connect(limits)
    assert second.closed()
    third.send(post(b" " * 1000))
    assert third.response()[0] == 400
    assert server.server._bodies == 0


def test_too_many_connections_are_told_so(connect: Any) -> None:
    limits = Limits(connections=2)
    clients = [connect(limits) for _ in range(2)]
    for client in clients:
        client.send(get("/v2/health/live"))
        assert client.response()[0] == 200
    third = connect(limits)
    assert third.response()[0] == 503
    assert third.closed()
    clients[0].send(get("/v2/health/live"))
    assert clients[0].response()[0] == 200


def test_slow_and_idle_clients_are_not_waited_for(connect: Any) -> None:
    limits = Limits(receive_s=0.2, idle_s=0.2, linger_s=0.2)
    slow, idle, silent = connect(limits), connect(limits), connect(limits)
    slow.send(post(infer_body(1, 2, 3))[:-5])
    idle.send(get("/v2/health/live"))
    assert idle.response()[0] == 200
    assert slow.response()[0] == 408
    for client in (slow, idle, silent):
        assert client.closed()


def test_a_client_that_does_not_read_is_given_up(models: Any, connect: Any) -> None:
    limits = Limits(send_s=0.2)
    client = connect(limits)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    (server,) = connect.servers.values()
    client.socket.settimeout(10)
    request = get("/metrics") * 200
    with contextlib.suppress(ConnectionResetError, BrokenPipeError, TimeoutError):
        for _ in range(500):
            client.send(request)
    until(lambda: not server.server._connections)


def test_a_full_queue_is_503_with_a_reason(models: Any, connect: Any) -> None:
    """The model is held; its queue holds 8; 14 clients ask."""
    lane, go = models.table.lookup("scale").lane, threading.Event()
    real = lane._engine.infer
    clients = [connect() for _ in range(14)]
    lane._engine.infer = lambda inputs: go.wait(20) and real(inputs)
    for client in clients:
        client.send(post(infer_body(1, 2, 3)))
    (server,) = connect.servers.values()
    until(lambda: server.server.handler._statuses[503] == 6)
    go.set()
    found = [client.response() for client in clients]
    assert sorted(status for status, _, _ in found) == [200] * 8 + [503] * 6
    busy = [f for f in found if f[0] == 503]
    assert "the model is busy: 8 requests wait for it already" in json.loads(busy[0][2])["error"]
    assert busy[0][1]["retry-after"] == "1"


def test_stop_answers_what_was_accepted(models: Any, serve: Any) -> None:
    models.activate_slow(2000)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 64, 64], "data": [0.0] * 4096}
    request = post(json.dumps({"inputs": [tensor]}).encode(), "/v2/models/slow/infer")
    with serve(models.table) as server:
        lane, taken = models.table.lookup("slow").lane, threading.Event()
        real = lane._engine.infer

        def infer_while_it_stops(inputs: Any) -> Any:
            taken.set()
            until(lambda: server.server.port == 0)
            return real(inputs)

        lane._engine.infer = infer_while_it_stops
        client = Client(server.port)
        client.send(request)
        assert taken.wait(15)
    status, headers, _ = client.response()
    assert (status, headers["connection"]) == (200, "close")
    client.socket.close()
    with pytest.raises(ConnectionRefusedError):
        Client(server.port)


def test_metrics_are_prometheus_text(connect: Any) -> None:
    client = connect()
    client.send(post(infer_body(1, 2, 3)) + get("/metrics"))
    client.response()
    (server,) = connect.servers.values()
    server.server.add_metrics(lambda: [Metric("own", "gauge", "Own.", [Sample({"a": 'q"\\\n'}, 1.5)])])
    client.send(get("/metrics"))
    client.response()
    status, headers, body = client.response()
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    lines = body.decode().splitlines()
    assert 'edgewise_inferences_total{model="scale",version="1"} 1' in lines
    assert 'edgewise_inference_seconds_bucket{model="scale",version="1",le="+Inf"} 1' in lines
    assert 'edgewise_inference_seconds_count{model="scale",version="1"} 1' in lines
    assert 'edgewise_http_responses_total{status="200"} 2' in lines
    assert r'own{a="q\"\\\n"} 1.5' in lines


def test_random_bytes_never_stop_the_server(connect: Any) -> None:
    import random

    rng = random.Random(11)
    whole = post(infer_body(1, 2, 3)) + get("/v2") + post(b"x" * 50, INFER, "content-encoding: gzip")
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 12)):
            place = rng.randrange(len(data))
            if rng.random() < 0.5:
                data[place] = rng.randrange(256)
            else:
                del data[place : place + rng.randint(1, 9)]
        client = connect()
        client.send(bytes(data))
        client.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while client.socket.recv(65536):
                pass
        client.socket.close()
    client = connect()
    client.send(post(infer_body(1, 2, 3)))
    assert answer(client.response()) == [2, 4, 6]


def test_no_request_fails_while_a_model_is_replaced(models: Any, connect: Any) -> None:
    """Clients ask without a pause while versions follow each other."""
    stop = threading.Event()
    seen: list[tuple[int, float]] = []
    problems: list[Any] = []

    def ask(client: Client) -> None:
        while not stop.is_set():
            client.send(post(infer_body(1, 1, 1)))
            status, _, body = client.response()
            if status != 200:
                problems.append((status, body))
                return
            said = json.loads(body)
            seen.append((int(said["model_version"]), said["outputs"][0]["data"][0]))

    threads = [threading.Thread(target=ask, args=(connect(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(2, 10):
        models.activate_scale(version, 2.0 * version)
        until(lambda wanted=version: bool(problems) or (bool(seen) and seen[-1][0] == wanted))  # type: ignore[misc]
    stop.set()
    for thread in threads:
        thread.join(20)
    assert problems == []
    assert {version for version, _ in seen} >= set(range(2, 10))
    assert all(value == 2.0 * version for version, value in seen)


def test_trailers_are_no_headers_and_are_bounded(connect: Any) -> None:
    body = infer_body(1.0, 2.0, 3.0)
    head = f"POST {INFER} HTTP/1.1\r\nhost: d\r\ntransfer-encoding: chunked\r\n\r\n{len(body):x}\r\n".encode()
    client = connect()
    client.send(head + body + b"\r\n0\r\ninference-header-content-length: 0\r\n\r\n")
    assert client.response()[0] == 200
    client = connect()
    client.send(head + body + b"\r\n0\r\nx-endless: ")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(64):
            client.send(b"x" * 65_536)
            if select.select([client.socket], [], [], 0.001)[0]:
                break  # the server has answered
    with contextlib.suppress(ConnectionResetError):
        assert client.response()[0] == 431
