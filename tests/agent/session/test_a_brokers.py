"""Guards against relying on what one broker happens to do: retained reads, wills and TLS, on real brokers."""

from __future__ import annotations

import ipaddress
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from edgewise_agent.errors import FetchTimeoutError, SessionError
from edgewise_agent.identity.identity import load_identity
from edgewise_agent.session.retained import RetainedReader
from edgewise_agent.session.shell import Endpoint, Session
from edgewise_protocol import topics
from edgewise_protocol.messages import Status


@pytest.fixture(params=["mosquitto", "iotcore"])
def broker_port(request: pytest.FixtureRequest) -> Iterator[int]:
    if request.param == "mosquitto":
        yield request.getfixturevalue("mosquitto").port
        return
    yield request.getfixturevalue("iotcore_port")


class Link:
    """A session with a reader on it, and events to wait for."""

    def __init__(self, port: int, device: str = "device-1", tls: ssl.SSLContext | None = None) -> None:
        self.online, self.offline = threading.Event(), threading.Event()
        self.other: list[tuple[str, bytes]] = []
        self.session = Session(
            Endpoint("127.0.0.1", port, device, 30, tls),
            [topics.device(device, "assignment"), topics.ALL_ROUND_OFFERS],
            lambda session: Status(online=True, session=session),
            self._message,
            lambda mid: self.reader.subscribed(mid),
            self.online.set,
            self._lost,
        )
        self.reader = RetainedReader(self.session, 3.0)

    def _message(self, topic: str, payload: bytes) -> None:
        if not self.reader.deliver(topic, payload):
            self.other.append((topic, payload))

    def _lost(self) -> None:
        self.reader.lost()
        self.offline.set()

    def __enter__(self) -> Link:
        self.session.start()
        assert self.online.wait(10), self.session.last_error
        return self

    def __exit__(self, *_: object) -> None:
        self.session.stop()


def test_present_and_absent_retained_messages_are_told_apart(broker_port: int, simulator: Any) -> None:
    voice = simulator.FleetVoice(broker_port, "device-1")
    try:
        voice.publish(topics.SENTINEL, b"1")
        present = [topics.blob("a" * 64, n) for n in range(0, 8, 2)]
        for n, topic in enumerate(present):
            voice.publish(topic, bytes([n]) * 131_072)
        with Link(broker_port) as link:
            for _ in range(20):
                found = link.reader.read([topics.blob("a" * 64, n) for n in range(8)])
                assert {topic: data[0] for topic, data in found.items()} == {t: n for n, t in enumerate(present)}
                assert link.reader.read([topics.metadata("9.root.json")]) == {}
            asked: list[str] = []

            def publish(absent: list[str]) -> None:
                asked.extend(absent)
                voice.publish(absent[0], b"late")

            late = topics.blob("b" * 64, 0)
            assert link.reader.read([late], ask=publish, wait_s=5.0) == {late: b"late"}
            assert asked == [late]
    finally:
        voice.close()


def test_without_a_sentinel_silence_is_bounded_and_the_connection_is_renewed(mosquitto: Any) -> None:
    with Link(mosquitto.port) as link:
        link.reader._silence_s = 0.2
        link.online.clear()
        with pytest.raises(FetchTimeoutError):
            link.reader.read([topics.metadata("timestamp.json")])
        assert link.online.wait(10)


def test_a_lost_connection_ends_a_read(mosquitto: Any) -> None:
    with Link(mosquitto.port) as link:
        stopper = threading.Timer(0.2, mosquitto.stop)
        stopper.start()
        with pytest.raises(SessionError):
            link.reader.read([topics.metadata("timestamp.json")])
        stopper.join()
        with pytest.raises(SessionError):
            link.session.publish("ew/1/dev/device-1/reported", b"{}")


def test_a_killed_session_leaves_its_will_and_a_stopped_one_its_farewell(mosquitto: Any, simulator: Any) -> None:
    voice = simulator.FleetVoice(mosquitto.port, "device-1")
    try:
        with Link(mosquitto.port) as link:
            birth = voice.wait("status", lambda s: s.online, "a birth")
            sock = link.session._client.socket()  # type: ignore[union-attr]
            sock.shutdown(2)
            voice.wait("status", lambda s: not s.online and s.session == birth.session, "the will")
            second = voice.wait("status", lambda s: s.online and s.session != birth.session, "a new birth")
        voice.wait("status", lambda s: not s.online and s.session == second.session and s.at > 0, "a farewell")
    finally:
        voice.close()


def test_the_brokers_certificate_and_the_devices_are_both_checked(
    tmp_path: Path, authority: Any, enrol_here: Callable[..., Path], simulator: Any, unused_port: int
) -> None:
    folder = tmp_path / "tls"
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")]))
        .issuer_name(authority.intermediate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(authority.key, hashes.SHA256())
    )
    chain = (certificate, authority.intermediate)
    (folder / "broker.pem").write_bytes(b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain))
    (folder / "broker.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "ca.pem").write_text(authority.root_pem)
    (folder / "mosquitto.conf").write_text(
        f"listener {unused_port} 127.0.0.1\ncafile {folder}/ca.pem\ncertfile {folder}/broker.pem\n"
        f"keyfile {folder}/broker.key\nrequire_certificate true\nuse_identity_as_username true\n"
        "allow_anonymous false\nlog_type none\nuser root\n"
    )
    state = enrol_here(tmp_path / "state", unused_port, simulator.Repository().root_bytes)
    card = state / "identity/identity.json"
    card.write_text(card.read_text().replace('"tls": false', '"tls": true'))
    tls = load_identity(state, now).tls()
    assert tls is not None
    process = subprocess.Popen(["/usr/sbin/mosquitto", "-c", str(folder / "mosquitto.conf")], stderr=subprocess.DEVNULL)
    try:
        link = Link(unused_port, tls=tls)
        with link:
            link.session.publish("ew/1/dev/device-1/reported", b"{}")
        stranger = Link(unused_port, tls=ssl.create_default_context(cafile=str(folder / "ca.pem")))
        stranger.session.start()
        assert not stranger.online.wait(1.0)
        stranger.session.stop()
    finally:
        process.terminate()
        process.wait(10)


def test_a_callback_that_fails_does_not_end_the_connection(broker_port: int, simulator: Any) -> None:
    voice = simulator.FleetVoice(broker_port, "device-1")
    try:
        with Link(broker_port) as link:
            handled = threading.Event()

            def handle(_topic: str, payload: bytes) -> None:
                if payload == b"bad":
                    raise ZeroDivisionError
                handled.set()

            link.session._on_message = handle
            voice.publish(topics.device("device-1", "assignment"), b"bad")
            voice.publish(topics.device("device-1", "assignment"), b"good")
            assert handled.wait(10)
    finally:
        voice.close()
