"""The danger: devices behind a firewall: port 443 only, or an HTTP proxy only; and a side door without the locks.

The agent reaches the broker by MQTT over WebSocket, through a CONNECT proxy, and by both at once; over each a model is
rolled out; and a revoked device is shut out of each.
"""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

pytestmark = pytest.mark.slow
AT_ONCE = ("--phase", "100")
USER = "thing:s3cret"


class ConnectProxy:
    """A real HTTP proxy that knows CONNECT, wants a password, and carries to named ports only."""

    def __init__(self, *ports: int) -> None:
        self.asked: list[str] = []
        self.refused: list[str] = []
        self._ports = ports
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._begin(self._accept)

    def _begin(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                made, _ = self._listening.accept()
            except OSError:
                return
            self._begin(self._serve, made)

    def _serve(self, inner: socket.socket) -> None:
        with inner, contextlib.suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (data := inner.recv(1)):
                    return
                head += data
            first, *fields = head.decode().split("\r\n")
            target = first.split(" ")[1]
            wanted = f"Proxy-Authorization: Basic {base64.b64encode(USER.encode()).decode()}"
            if wanted not in fields:
                self.refused.append(target)
                inner.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            host, _, port = target.rpartition(":")
            if int(port) not in self._ports:
                self.refused.append(target)
                inner.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                return
            with socket.create_connection((host, int(port))) as outer:
                self.asked.append(target)
                inner.sendall(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n")
                self._carry(inner, outer)

    def _carry(self, inner: socket.socket, outer: socket.socket) -> None:
        while not self._stop.is_set():
            for ready in select.select([inner, outer], [], [], 0.2)[0]:
                if not (data := ready.recv(65_536)):
                    return
                (outer if ready is inner else inner).sendall(data)

    def close(self) -> None:
        self._stop.set()
        self._listening.close()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, bundles: Any, fleets: Any, secured: Any, processes: Any
) -> Iterator[Any]:
    port = processes.free_port()
    made = secured.make(
        fleets, tmp_path_factory.mktemp("fleet"), processes, bundles, init=("--broker-websocket-port", port)
    )
    made.websocket_port = port
    yield from secured.alive(made)


@pytest.fixture(scope="module")
def proxy(fleet: Any) -> Iterator[ConnectProxy]:
    made = ConnectProxy(fleet.broker.port, fleet.websocket_port)
    yield made
    made.close()


@pytest.fixture(scope="module")
def devices(fleet: Any, proxy: ConnectProxy) -> dict[str, Any]:
    """One device for each way."""
    over_websocket = {"broker_transport": "websockets", "broker_port": fleet.websocket_port}
    through_proxy = {"proxy_url": f"http://{USER}@127.0.0.1:{proxy.port}"}
    ways = {"web": over_websocket, "proxied": through_proxy, "both": over_websocket | through_proxy}
    found = {}
    for name, settings in ways.items():
        found[name] = fleet.enrol(name, "raspberry-pi-5")
        fleet.start_device(found[name], **settings)
    fleet.edgewise("device", "wait", *ways, "--timeout", 90)
    return found


def test_a_model_is_rolled_out_over_every_way(fleet: Any, bundles: Any, devices: dict[str, Any], proxy: Any) -> None:
    fleet.publish("meter", 1)
    fleet.roll_out("meter", 1, *AT_ONCE)
    x = bundles.samples(5)
    for device in devices.values():
        version, logits = device.infer("meter", x)
        assert version == 1
        assert abs(logits - bundles.logits_of("meter", 1, device.board, x)).max() < 1e-4
    assert set(proxy.asked) == {f"127.0.0.1:{port}" for port in (fleet.broker.port, fleet.websocket_port)}
    assert all(fleet.get(f"/devices/{name}")["online"] for name in devices)


def test_a_proxy_that_refuses_is_named(fleet: Any, devices: dict[str, Any], proxy: ConnectProxy) -> None:
    device = fleet.enrol("locked", "raspberry-pi-5")
    fleet.start_device(device, proxy_url=f"http://127.0.0.1:{proxy.port}")
    fleet.wait_for("the cause", lambda: "wants a user and a password" in device.process.text)
    device.process.stop()
    fleet.start_device(device, proxy_url=f"http://{USER}@127.0.0.1:{proxy.port}", broker_port=1)
    fleet.wait_for("the cause", lambda: "many allow port 443 only" in device.process.text)
    device.process.stop()
    fleet.devices.remove(device)


def connected(fleet: Any, tls: Any, processes: Any) -> tuple[Any, list[str]]:
    """A client over WebSocket, and what it is told."""
    told: list[str] = []
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2, "x", protocol=mqtt.MQTTv5, transport="websockets", reconnect_on_failure=False
    )
    client.tls_set_context(tls)
    client.on_connect = lambda _c, _d, _f, reason, _p: told.append(str(reason))
    client.on_disconnect = lambda _c, _d, _f, reason, _p: told.append(f"ended: {reason}")
    client.connect("127.0.0.1", fleet.websocket_port)
    client.loop_start()
    processes.wait_for("an answer", lambda: told, 10)
    return client, told


def handshake(fleet: Any, tls: ssl.SSLContext, path: str = "/mqtt") -> str:
    """The first line of the gateway's answer; something else where TLS has ended the connection."""
    head = (
        f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    )
    with (
        socket.create_connection(("127.0.0.1", fleet.websocket_port), 10) as plain,
        tls.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        try:
            connection.sendall(head.encode())
            return connection.recv(4_096).decode().split("\r\n")[0]
        except OSError as error:
            return str(error).lower()


def test_a_revoked_device_is_shut_out_of_the_websocket_too(fleet: Any, devices: Any, processes: Any) -> None:
    """Mosquitto's own WebSocket listener lets a revoked device in: this is why there is a gateway."""
    device = devices.pop("web")
    device.process.stop()
    fleet.devices.remove(device)
    tls = fleet.tls(device.state)
    client, told = connected(fleet, tls, processes)
    assert told == ["Success"]
    assert handshake(fleet, tls) == "HTTP/1.1 101 Switching Protocols"
    fleet.edgewise("device", "revoke", "web")
    fleet.wait_for("the open connection ends", lambda: told[-1].startswith("ended"))
    client.loop_stop()
    assert not handshake(fleet, tls).startswith("HTTP/")
    fleet.wait_for("the cause", lambda: "certificate revoked" in fleet.server.text)


def test_nobody_comes_in_without_a_certificate(fleet: Any, devices: Any) -> None:
    tls = ssl.create_default_context(cafile=str(devices["both"].state / "identity" / "fleet-ca.pem"))
    assert not handshake(fleet, tls).startswith("HTTP/")
    fleet.wait_for("the cause", lambda: "peer did not return a certificate" in fleet.server.text)
    own = fleet.tls(devices["both"].state)
    assert handshake(fleet, own) == "HTTP/1.1 101 Switching Protocols"
    assert handshake(fleet, own, "/other") == "HTTP/1.1 404 Not Found"
