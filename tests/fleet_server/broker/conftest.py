"""A managed Mosquitto of its own beside a server's context, with the ceremony installed."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from edgewise_server.broker.setup import BrokerOptions, set_up_mosquitto
from edgewise_server.context import Context, online_description
from edgewise_server.models.base import utc_now
from edgewise_server.models.devices import Device
from edgewise_server.services import identity
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

WAIT_S = 10.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(look: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    deadline, pause = time.monotonic() + timeout_s, threading.Event()
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {found!r}"
        pause.wait(0.01)
    return found


class Phone:
    """An MQTT 5 client with a certificate; records what it is told."""

    def __init__(self, port: int, tls: ssl.SSLContext, will: str = "", session_s: int = 0) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.outcome = self.ended = ""
        self._subscribed: dict[int, list[str]] = {}
        self._published: dict[int, str] = {}
        self._client = client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id="whatever", protocol=mqtt.MQTTv5, reconnect_on_failure=False
        )
        client.tls_set_context(tls)
        if will:
            client.will_set(will, b"gone", qos=1)
        client.on_connect = lambda _c, _d, _f, reason, _p: setattr(self, "outcome", str(reason))
        client.on_disconnect = lambda _c, _d, _f, reason, _p: setattr(self, "ended", str(reason))
        client.on_message = lambda _c, _d, message: self.messages.append((message.topic, bytes(message.payload)))
        client.on_subscribe = lambda _c, _d, mid, reasons, _p: self._subscribed.update({mid: [str(r) for r in reasons]})
        client.on_publish = lambda _c, _d, mid, reason, _p: self._published.update({mid: str(reason)})
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = session_s
        try:
            client.connect("127.0.0.1", port, clean_start=not session_s, properties=properties)
        except OSError as error:
            self.outcome = self.ended = f"refused: {error}"
            return
        client.loop_start()
        wait_for(lambda: self.outcome or self.ended)

    def subscribe(self, *filters: str) -> list[str]:
        _, mid = self._client.subscribe([(name, 1) for name in filters])
        return wait_for(lambda: self._subscribed.get(mid))

    def publish(self, topic: str, payload: bytes = b"x", *, retain: bool = False) -> str:
        mid = self._client.publish(topic, payload, qos=1, retain=retain).mid
        return wait_for(lambda: self._published.get(mid))

    def send(self, topic: str, payload: bytes) -> None:
        """Publish without waiting."""
        self._client.publish(topic, payload, qos=1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Secured:
    """The broker, the context, the offline keys, and certificates for whomever a test needs."""

    wait_for = staticmethod(wait_for)

    def __init__(self, context: Context, ceremony: Any, port: int, folder: Path) -> None:
        self.context, self.ceremony, self.port, self.folder = context, ceremony, port, folder
        self.files = context.settings.broker_files
        self._opened: list[Any] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        if program is None:
            pytest.skip("mosquitto is not installed")
        log = (self.folder / "mosquitto.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [program, "-c", str(self.files / "mosquitto.conf")], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for(self._listens)

    def _listens(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except ConnectionRefusedError:
            return False
        return (self.files / "mosquitto.pid").exists()

    @property
    def log(self) -> str:
        return (self.folder / "mosquitto.log").read_text()

    def device(self, name: str) -> ssl.SSLContext:
        """Register a device, and give its TLS context."""
        key = ec.generate_private_key(ec.SECP256R1())
        csr = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256())
        with self.context.database.session() as session:
            ca = identity.fleet_ca(session)
            issued = self.context.authority.issue(
                csr.public_bytes(Encoding.PEM).decode(),
                ca.intermediate_pem,
                device_id=name,
                channel="lab",
                now=utc_now(),
                days=30,
            )
            session.add(
                Device(
                    id=name,
                    channel="lab",
                    certificate_serial=issued.serial,
                    certificate_not_after=utc_now() + timedelta(days=30),
                )
            )
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return self.tls(issued.chain_pem + pem)

    def tls(self, chain_and_key: str) -> ssl.SSLContext:
        with self.context.database.session(read_only=True) as session:
            context = ssl.create_default_context(cadata=identity.fleet_ca(session).root_pem)
        path = self.folder / f"client-{len(list(self.folder.glob('client-*')))}.pem"
        path.write_text(chain_and_key)
        context.load_cert_chain(path)
        return context

    def shown(self) -> x509.Certificate:
        """The certificate that the broker shows."""
        tls = self.tls((self.files / "server.pem").read_text())
        with (
            socket.create_connection(("127.0.0.1", self.port)) as plain,
            tls.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            return x509.load_der_x509_certificate(connection.getpeercert(True) or b"")

    def phone(self, tls: ssl.SSLContext, **options: Any) -> Phone:
        made = Phone(self.port, tls, **options)
        self._opened.append(made)
        return made

    def server_phone(self, **options: Any) -> Phone:
        return self.phone(self.tls((self.files / "server.pem").read_text()), **options)

    def close(self) -> None:
        for opened in reversed(self._opened):
            opened.close()
        if self._process is not None:
            self._process.terminate()
            try:
                assert self._process.wait(WAIT_S) == 0
            finally:
                self._process.kill()


@pytest.fixture
def unstarted(tmp_path: Path, kit: SimpleNamespace) -> Iterator[Secured]:
    """Everything but the broker's process; the ceremony is installed."""
    state, port = tmp_path / "state", free_port()
    set_up_mosquitto(state, BrokerOptions(port=port))
    context = kit.make_state(state)
    made = kit.Ceremony(online_description(context.keys, context.authority))
    context.repository.install(made.document(), now=kit.NOW, actor="test")
    secured = Secured(context, made, port, tmp_path)
    yield secured
    secured.close()
    context.close()


@pytest.fixture
def secured(unstarted: Secured) -> Secured:
    """The same with the broker running."""
    unstarted.context.refresh_crl(force=True)
    unstarted.start()
    return unstarted
