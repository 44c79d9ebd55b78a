"""Danger: a server that ends in a traceback because a port is taken, or that serves its API with a certificate that
nobody can verify, or with yesterday's."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import httpx
import pytest
from cryptography import x509
from edgewise_server.__main__ import main
from edgewise_server.broker.certificate import make_certificate
from edgewise_server.context import online_description
from edgewise_server.errors import InvalidError, NoTrustError, PortError, SettingsError
from edgewise_server.serving import CertificateWatch, bind
from edgewise_server.settings import load_settings


def taken() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def run(state, **environment):
    command = [sys.executable, "-m", "edgewise_server", "run", "--state", str(state)]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize(("setting", "role"), [("HTTP_PORT", "all"), ("BROKER_PORT", "all"), ("BROKER_PORT", "bridge")])
def test_a_port_that_is_taken_gives_one_line_that_says_what_to_do(tmp_path, setting, role):
    main(["init", "--state", str(tmp_path / "state")])
    with taken() as other:
        port = other.getsockname()[1]
        ports = {"EDGEWISE_SERVER_HTTP_PORT": "0", "EDGEWISE_SERVER_BROKER_PORT": "1"}
        with taken() as probe:
            ports["EDGEWISE_SERVER_BROKER_PORT"] = str(probe.getsockname()[1])
        ports[f"EDGEWISE_SERVER_{setting}"] = str(port)
        command = [sys.executable, "-m", "edgewise_server", "run", "--state", str(tmp_path / "state"), "--role", role]
        done = subprocess.run(command, env=os.environ | ports, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("edgewise-server: ")]
    assert str(port) in line and "already in use" in line and "end the program" in line


def test_an_address_that_is_not_ours_is_named():
    with pytest.raises(PortError, match=r"192\.0\.2\.1"):
        bind("192.0.2.1", 0)
    with pytest.raises(PortError, match="another --host"):
        bind("no such host", 1)


@pytest.fixture
def installed(tmp_path, kit):
    """Settings of a state folder with the ceremony installed."""
    context = kit.make_state(tmp_path / "state")
    made = kit.Ceremony(online_description(context.keys, context.authority))
    context.repository.install(made.document(), now=kit.NOW, actor="test")
    context.close()
    return context.settings


def test_what_cannot_be_meant_is_said_in_one_line(tmp_path, capsys):
    state = ["--state", str(tmp_path / "s")]
    assert main(["init", *state, "--broker-host", "fleet.example.org"]) == 1
    assert "--broker mosquitto" in capsys.readouterr().err, "a host that is ignored is a host that devices never reach"
    assert not (tmp_path / "s").exists()
    assert main(["init", *state]) == 0
    capsys.readouterr()
    assert main(["run", *state, "--port", "99999"]) == 1
    said = capsys.readouterr().err
    assert "http_port: " in said and "65535" in said
    assert said.count("\n") == 1 and "pydantic" not in said


def test_a_certificate_needs_the_ceremony_names_and_a_bounded_life(tmp_path, kit, installed):
    main(["init", "--state", str(tmp_path / "new")])
    with pytest.raises(NoTrustError):
        make_certificate(load_settings(tmp_path / "new"), ["a"], tmp_path / "out", 1)
    for hosts, days, error in (([], 1, InvalidError), (["a b"], 1, InvalidError), (["a"], 0, SettingsError)):
        with pytest.raises(error):
            make_certificate(installed, hosts, tmp_path / "out", days)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="written"):
        make_certificate(installed, ["a"], tmp_path / "file", 1)


def test_the_api_is_served_by_tls_with_a_certificate_of_the_fleet(tmp_path, installed, capsys, monkeypatch):
    monkeypatch.setenv("EDGEWISE_SERVER_DATABASE_URL", installed.database_url)
    out = tmp_path / "tls"
    arguments = ["certificate", "--state", str(installed.state), "--host", "localhost", "--host", "127.0.0.1"]
    assert main([*arguments, "--out", str(out)]) == 0
    assert "--ca-file" in capsys.readouterr().out
    assert (out / "key.pem").stat().st_mode & 0o777 == 0o600
    with taken() as probe:
        port = probe.getsockname()[1]
    environment = os.environ | {
        "EDGEWISE_SERVER_HTTP_CERTIFICATE_FILE": str(out / "certificate.pem"),
        "EDGEWISE_SERVER_HTTP_KEY_FILE": str(out / "key.pem"),
        "EDGEWISE_SERVER_HTTP_PORT": str(port),
        "EDGEWISE_SERVER_EMBEDDED_BROKER": "false",
    }
    command = [sys.executable, "-m", "edgewise_server", "run", "--state", str(installed.state)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        context = ssl.create_default_context(cafile=out / "ca.pem")
        url, deadline, pause = f"https://localhost:{port}/api/v1/health", time.monotonic() + 60, threading.Event()
        while True:
            assert process.poll() is None and time.monotonic() < deadline
            try:
                assert httpx.get(url, verify=context).status_code == 200
                break
            except httpx.TransportError:
                pause.wait(0.05)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(url)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0 and "Traceback" not in errors, errors
    finally:
        process.kill()
        process.wait(10)
    settings = load_settings(installed.state, http_certificate_file=out / "certificate.pem", http_port=1)
    assert settings.base_url == "https://127.0.0.1:1"


def test_a_renewed_certificate_is_served_without_a_restart(tmp_path, installed):
    out = tmp_path / "tls"
    make_certificate(installed, ["localhost"], out, 1)
    files = {"http_certificate_file": out / "certificate.pem", "http_key_file": out / "key.pem"}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files.values())
    watch = CertificateWatch(load_settings(installed.state, **files), context)
    assert not watch.look()
    before = shown(context, out / "ca.pem")
    make_certificate(installed, ["localhost"], out, 1)
    assert watch.look() and not watch.look()
    after = shown(context, out / "ca.pem")
    assert after != before
    (out / "certificate.pem").write_text("junk")
    assert not watch.look()
    assert shown(context, out / "ca.pem") == after, "a damaged file must not take the old certificate away"


def shown(context, authorities):
    """Serial number of the certificate that a server of this context shows."""
    client = ssl.create_default_context(cafile=authorities)
    ends = [ssl.MemoryBIO(), ssl.MemoryBIO()]
    server = context.wrap_bio(ends[0], ends[1], server_side=True)
    asking = client.wrap_bio(ends[1], ends[0], server_hostname="localhost")
    for _ in range(4):
        for end in (asking, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return x509.load_der_x509_certificate(asking.getpeercert(True)).serial_number


def test_a_certificate_that_cannot_be_used_is_named(tmp_path):
    main(["init", "--state", str(tmp_path / "state")])
    done = run(tmp_path / "state", EDGEWISE_SERVER_HTTP_CERTIFICATE_FILE=str(tmp_path / "none"))
    assert done.returncode == 1 and "certificate of the API" in done.stderr and "Traceback" not in done.stderr
