"""Danger: `init --broker mosquitto` run twice: an operator's edit is lost, or the broker listens elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from edgewise_protocol.errors import ProtocolError
from edgewise_server.broker.credentials import serials, why_due
from edgewise_server.broker.mosquitto import Listening, access_list, configuration
from edgewise_server.broker.reload import reload_mosquitto
from edgewise_server.broker.setup import BrokerOptions, set_up_mosquitto
from edgewise_server.broker.written import Outcome, was_edited, write_generated
from edgewise_server.errors import CertificateError, InvalidError, SettingsError
from edgewise_server.pki.leaf import alternative_names
from edgewise_server.settings import load_settings
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime.now(UTC)


def test_a_second_run_changes_nothing_and_options_that_contradict_are_refused(tmp_path):
    first = set_up_mosquitto(tmp_path, BrokerOptions(("mqtt.example.org", "10.0.0.7"), 8884, 443))
    assert len(first) == 3
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    told = set_up_mosquitto(tmp_path, BrokerOptions())
    assert [line.rsplit(": ", 1)[1] for line in told] == ["unchanged", "unchanged"]
    set_up_mosquitto(tmp_path, BrokerOptions(("mqtt.example.org", "10.0.0.7"), 8884, 443))
    for options in (BrokerOptions(port=8885), BrokerOptions(("other",)), BrokerOptions(address="10.0.0.1")):
        with pytest.raises(SettingsError, match=r"server\.toml says"):
            set_up_mosquitto(tmp_path, options)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    settings = load_settings(tmp_path)
    assert (settings.broker_public_host, settings.broker_host) == ("mqtt.example.org", "127.0.0.1")
    assert (settings.broker_port, settings.websocket_port) == (8884, 443)
    assert settings.broker_tls and settings.broker_managed and not settings.embedded_broker
    text = (tmp_path / "broker" / "mosquitto.conf").read_text()
    assert "\nlistener 8884\n" in text


def test_without_a_name_it_listens_on_loopback_only(tmp_path):
    set_up_mosquitto(tmp_path, BrokerOptions())
    assert "\nlistener 8883 127.0.0.1\n" in (tmp_path / "broker" / "mosquitto.conf").read_text()
    assert (tmp_path / "broker").stat().st_mode & 0o777 == 0o700


def test_what_an_operator_edited_stays(tmp_path):
    (tmp_path / "server.toml").write_text("http_port = 1234")
    set_up_mosquitto(tmp_path, BrokerOptions())
    assert load_settings(tmp_path).http_port == 1234
    config = tmp_path / "broker" / "mosquitto.conf"
    config.write_text(config.read_text() + "log_type debug\n")
    # the settings are the operator's too: the newer configuration is laid beside the edited one
    toml = tmp_path / "server.toml"
    toml.write_text(toml.read_text().replace("broker_port = 8883", "broker_port = 8886"))
    told = set_up_mosquitto(tmp_path, BrokerOptions())
    assert "was edited" in told[0]
    assert config.read_text().endswith("log_type debug\n") and "listener 8883" in config.read_text()
    assert "listener 8886" in config.with_name("mosquitto.conf.new").read_text()


@pytest.mark.parametrize(
    "options",
    [BrokerOptions(port=0), BrokerOptions(port=70_000), BrokerOptions(("a b",)), BrokerOptions(("*.x",)),
     BrokerOptions(tuple(f"h{n}" for n in range(40)))],
)  # fmt: skip
def test_what_is_not_a_port_or_a_name_is_refused_before_anything_is_written(tmp_path, options):
    with pytest.raises((SettingsError, InvalidError)):
        set_up_mosquitto(tmp_path, options)
    assert not list(tmp_path.iterdir())


def test_settings_that_init_cannot_extend_are_refused(tmp_path):
    (tmp_path / "server.toml").write_text("[table]\nx = 1\n")
    with pytest.raises(SettingsError, match="tables"):
        set_up_mosquitto(tmp_path, BrokerOptions())
    (tmp_path / "server.toml").write_text("not toml")
    with pytest.raises(SettingsError, match="read"):
        set_up_mosquitto(tmp_path, BrokerOptions())


@given(st.text(max_size=200), st.text(min_size=1, max_size=20))
def test_an_edit_shows(text, more):
    from edgewise_server.broker.written import marked

    made = marked(text)
    assert not was_edited(made)
    assert was_edited(made + more)
    assert was_edited(more + made) or not more.strip()


def test_a_generated_file_is_written_kept_or_left(tmp_path):
    path = tmp_path / "acl"
    assert write_generated(path, "a\n") == Outcome.WRITTEN
    assert write_generated(path, "a\n") == Outcome.UNCHANGED
    assert write_generated(path, "b\n") == Outcome.WRITTEN
    path.write_text("mine\n")
    assert write_generated(path, "c\n") == Outcome.KEPT
    assert path.read_text() == "mine\n"
    path.write_bytes(b"\xff")
    with pytest.raises(SettingsError):
        write_generated(path, "c\n")


def test_the_configuration_has_what_the_wire_needs():
    text = configuration(Listening(Path("/var/lib/edgewise/broker"), 8883, user="edgewise"))
    lines = text.splitlines()
    for wanted in (
        "allow_anonymous false", "require_certificate true", "use_identity_as_username true",
        "use_username_as_clientid true", "set_tcp_nodelay true", "persistence true", "tls_version tlsv1.2",
        "crlfile /var/lib/edgewise/broker/crl.pem", "sys_interval 0", "user edgewise",
    ):  # fmt: skip
        assert wanted in lines
    assert not [line for line in lines if line.startswith(("memory_limit", "message_size_limit"))]


def test_the_access_list_names_no_device_and_grants_nothing_with_a_wildcard_before_the_id():
    patterns = [line.split(" ")[2] for line in access_list().splitlines() if line.startswith("pattern")]
    own = [p for p in patterns if "%u" in p]
    assert own and all(p.startswith("ew/1/dev/%u/") for p in own)
    assert {p for p in patterns if "%u" not in p} == {"ew/1/meta/#", "ew/1/blob/#", "ew/1/round/#"}


@pytest.fixture
def authority(tmp_path, kit):
    from edgewise_server.pki.authority import create_authority

    made = create_authority(tmp_path)
    ceremony = kit.Ceremony({**kit_online(tmp_path), "intermediate_csr_pem": made.csr_pem()})
    _, intermediate = ceremony.fleet_ca()
    return made, intermediate


def kit_online(folder):
    from edgewise_server.trust.keys import create_keys

    return create_keys(folder / "keys").describe()


def test_each_certificate_serves_one_purpose_and_one_name(authority):
    made, intermediate = authority
    server = made.issue_server(intermediate, hosts=("mqtt.example.org", "10.0.0.7", "::1"), now=NOW, days=30)
    client = made.issue_client(intermediate, name="cam-1", now=NOW, days=30)
    issuer = x509.load_pem_x509_certificate(intermediate.encode())
    for credential, purpose in ((server, ExtendedKeyUsageOID.SERVER_AUTH), (client, ExtendedKeyUsageOID.CLIENT_AUTH)):
        leaf, above = x509.load_pem_x509_certificates(credential.chain_pem.encode())
        assert above == issuer
        leaf.verify_directly_issued_by(issuer)
        assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert why_due(server.bundle, issuer, NOW, hosts=("::1", "10.0.0.7", "mqtt.example.org")) == ""
    assert "names" in why_due(server.bundle, issuer, NOW, hosts=("mqtt.example.org",))
    assert why_due(client.bundle, issuer, NOW, name="cam-1") == ""
    assert "another name" in why_due(client.bundle, issuer, NOW, name="cam-2")
    assert why_due(client.bundle, issuer, NOW + timedelta(days=19), name="cam-1") == ""
    assert "two thirds" in why_due(client.bundle, issuer, NOW + timedelta(days=21), name="cam-1")
    assert why_due(None, issuer, NOW) == "there is none yet"
    assert "read" in why_due(b"junk", issuer, NOW)
    swapped = (client.chain_pem + server.key_pem).encode()
    assert "key" in why_due(swapped, issuer, NOW)
    with pytest.raises(CertificateError, match="expired"):
        made.issue_client(intermediate, name="cam-1", now=NOW + timedelta(days=4000), days=1)


def test_a_certificate_of_a_replaced_intermediate_is_due(authority, tmp_path, kit):
    from edgewise_server.pki.authority import create_authority

    made, intermediate = authority
    old = made.issue_client(intermediate, name="cam-1", now=NOW, days=30)
    newer = create_authority(tmp_path / "newer")
    ceremony = kit.Ceremony({**kit_online(tmp_path / "other"), "intermediate_csr_pem": newer.csr_pem()})
    issuer = x509.load_pem_x509_certificate(ceremony.fleet_ca()[1].encode())
    assert "replaced" in why_due(old.bundle, issuer, NOW, name="cam-1")
    assert issuer.public_bytes(Encoding.PEM)


def test_serials_of_a_list(authority):
    made, intermediate = authority
    text, _ = made.revocation_list(intermediate, [("0abc", NOW), ("ff", NOW)], number=1, now=NOW, days=1)
    assert serials(text.encode()) == {"abc", "ff"}
    assert serials(None) == serials(b"junk") == frozenset()


@pytest.mark.parametrize("host", ["", "-a", "a-", "a..b", "ä.example", "x" * 254, "a/b", "*", "a" * 64 + ".b"])
def test_names_that_are_none(host):
    with pytest.raises((InvalidError, ProtocolError)):
        alternative_names([host])


def test_only_a_mosquitto_is_told_to_reload(tmp_path):
    pid_file = tmp_path / "pid"
    assert "does not run here" in reload_mosquitto(pid_file)
    for content, why in (("x", "cannot be read"), ("-1", "does not hold"), ("1", "does not hold"), ("99999999", "not")):
        pid_file.write_text(content)
        assert why in reload_mosquitto(pid_file), content
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        pid_file.write_text(str(process.pid))
        assert "not mosquitto" in reload_mosquitto(pid_file)
        assert process.poll() is None, "a process that reused the id was signalled"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)


def test_a_mosquitto_that_is_only_starting_is_not_ended_by_the_signal(tmp_path, monkeypatch):
    """Before its handler is installed, SIGHUP means the end: it is waited for, and the signal then arrives."""
    program = "import signal, sys, time\nsys.stdin.readline()\nprint('up', flush=True)\n"
    program += "signal.signal(signal.SIGHUP, lambda *_: print('again', flush=True))\nwhile True: time.sleep(0.05)"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdin is not None and process.stdout is not None
        pid_file = tmp_path / "pid"
        pid_file.write_text(str(process.pid))
        comm = Path(f"/proc/{process.pid}/comm").read_text().strip()
        monkeypatch.setattr("edgewise_server.broker.reload._PROGRAM", comm)
        monkeypatch.setattr("edgewise_server.broker.reload.STARTING_S", 0.1)
        assert "would end it" in reload_mosquitto(pid_file)
        assert process.poll() is None
        monkeypatch.setattr("edgewise_server.broker.reload.STARTING_S", 10.0)
        process.stdin.write("\n")
        process.stdin.flush()
        assert reload_mosquitto(pid_file) == ""
        assert [process.stdout.readline().strip() for _ in range(2)] == ["up", "again"]
    finally:
        process.kill()
        process.communicate(timeout=10)
