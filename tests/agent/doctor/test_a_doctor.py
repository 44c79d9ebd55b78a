"""Guards against a doctor that needs a healthy patient, harms a running agent, or names the wrong cause."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from edgewise_agent.__main__ import main
from edgewise_agent.config import AgentConfig
from edgewise_agent.doctor import identity, installed, machine, network, process, state_folder, trust
from edgewise_agent.doctor.check import Check
from edgewise_agent.doctor.greeting import connect_packet, greet, variable_length
from edgewise_agent.install.state import InstallState, ModelState, Slot
from edgewise_agent.maintenance import Runtime
from edgewise_agent.session.shell import Endpoint

GIB = 1 << 30


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, list[Check]]]]:
    """Runs the command; exit status, and the checks by name."""

    def run(state: Path, *flags: str) -> tuple[int, dict[str, list[Check]]]:
        capsys.readouterr()
        status = main(["doctor", "--json", *flags, "--state", str(state)])
        found: dict[str, list[Check]] = {}
        for check in json.loads(capsys.readouterr().out)["checks"]:
            found.setdefault(check["name"], []).append(Check(**check))
        for check in (check for checks in found.values() for check in checks):
            assert check.verdict == "ok" or check.mend or check.name == "network", f"no way out: {check}"
        return status, found

    return run


def test_a_running_healthy_device_is_well_and_not_thrown_out_of_its_session(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, tmp_path: Path, examine: Callable[..., Any]
) -> None:
    file, data = simulator.make_bundle(1)
    voice.release(file, data)
    with run_agent() as device:
        voice.assign((file,), 1)
        voice.wait_model("committed", 1)
        session = voice.wait("status", lambda s: s.online, "a birth").session
        os.chmod(tmp_path / "state", 0o700)
        # Only the server, which does not exist here, is out of reach.
        status, found = examine(tmp_path / "state", "--deep")
        assert status == 0, found
        assert found["agent"][0].verdict == "ok" and "serving at" in found["agent"][0].text
        assert "the running agent is connected" in found["broker"][0].text
        assert (found["server"][0].verdict, found["server"][0].code) == ("warn", "server-unreachable")
        assert found["model"][0].text.startswith("tiny serves version 1; committed")
        assert "every byte" in found["store"][0].text and found["metadata"][0].verdict == "ok"
        assert device.agent.session.online
    assert {s.session for kind, s in voice.heard if kind == "status" and s.online} == {session}


def test_a_stopped_device_says_connect_and_a_dead_broker_is_named(
    voice: Any, mosquitto: Any, enrol_here: Callable[..., Path], tmp_path: Path, examine: Callable[..., Any]
) -> None:
    state = enrol_here(tmp_path / "state", mosquitto.port, voice.repository.root_bytes)
    _, found = examine(state)
    assert found["agent"][0].verdict == "warn" and found["broker"][0].verdict == "ok"
    mosquitto.stop()
    status, found = examine(state)
    assert status == 1 and "nothing listens there" in found["broker"][0].text
    mosquitto.start()


def test_without_an_identity_or_a_folder_it_still_speaks(tmp_path: Path, examine: Callable[..., Any]) -> None:
    status, found = examine(tmp_path)
    assert status == 1 and found["identity"][0].code == "not-enrolled" and "network" not in found
    status, found = examine(tmp_path / "nowhere")
    assert status == 1 and found["state"][0].code == "state"


@pytest.mark.parametrize(
    ("name", "check", "code"),
    [
        ("identity/identity.json", "identity", "identity"),
        ("identity/key.pem", "identity", "identity"),
        ("identity/certificate.pem", "identity", "identity"),
        ("installed.json", "models", "state-damaged"),
        ("clock", "clock", "state-damaged"),
        ("outbox.sqlite", "outbox", "outbox"),
        ("metadata/timestamp.json", "metadata", "metadata-invalid"),
        ("agent.toml", "settings", "config"),
    ],
)
def test_each_damaged_file_is_named_and_nothing_is_changed(
    name: str, check: str, code: str, enrol_here: Callable[..., Path], tmp_path: Path, examine: Callable[..., Any]
) -> None:
    state = enrol_here(tmp_path / "state", 1, b"{}")
    path = state / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x00" * 2048)
    before = {p: p.read_bytes() for p in state.rglob("*") if p.is_file()}
    _, found = examine(state, "--offline")
    assert found[check][0].verdict != "ok" and found[check][0].code == code
    assert {p: p.read_bytes() for p in state.rglob("*") if p.is_file()} == before


def test_an_outbox_that_the_agent_is_about_to_make_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    for begun in ("PRAGMA journal_mode = WAL", "CREATE TABLE message (size INTEGER)"):
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute(begun)
        assert machine.look_at_outbox(path) == machine.Waiting()


def test_a_damaged_bundle_is_found_deep(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, tmp_path: Path, examine: Callable[..., Any]
) -> None:
    file, data = simulator.make_bundle(1)
    voice.release(file, data)
    with run_agent():
        voice.assign((file,), 1)
        voice.wait_model("committed", 1)
    path = tmp_path / "state/store/bundles" / file.sha256 / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    assert examine(tmp_path / "state", "--offline")[1]["store"][0].verdict == "ok"
    assert examine(tmp_path / "state", "--offline", "--deep")[1]["store"][0].code == "store-damaged"


# -- the judges, which are pure ------------------------------------------------------------------


def test_the_state_folder() -> None:
    good = state_folder.Folder(Path("/s"), True, True, True, 0o700, 0, 0, 0o600, GIB)

    def verdicts(**changes: Any) -> list[tuple[str, str]]:
        folder = state_folder.Folder(**{**vars(good), **changes})
        return [(c.verdict, c.code) for c in state_folder.judge(folder, 64) if c.verdict != "ok"]

    assert verdicts() == []
    assert verdicts(writable=False) == [("fail", "state")]
    assert verdicts(key_mode=0o644) == [("fail", "")]
    assert verdicts(mode=0o777) == [("fail", "")]
    assert verdicts(free=1000) == [("fail", "disk-full")]
    assert verdicts(free=32 << 20) == [("fail", "disk-space")]
    assert verdicts(free=100 << 20) == [("warn", "")]
    assert verdicts(damaged=("clock.damaged-1",)) == [("warn", "state-damaged")]


def test_the_process() -> None:
    runtime = Runtime(pid=1, serving_url="http://x", started=0.0)

    def verdicts(found: process.Process) -> list[str]:
        return [c.verdict for c in process.judge(found, 3)]

    assert verdicts(process.Process(True, runtime)) == ["ok", "ok"]
    assert verdicts(process.Process(False, runtime)) == ["warn", "ok"]
    stuck = Runtime(pid=1, serving_url="http://x", started=0.0, stalled=("pump",))
    assert "stuck: pump" in process.judge(process.Process(True, stuck), 3)[0].text
    assert verdicts(process.Process(True, runtime, boots={"m": 3})) == ["ok", "warn"]


def test_metadata_that_expired_or_will() -> None:
    now = datetime(2026, 1, 10, tzinfo=UTC)

    def codes(**days: int) -> list[tuple[str, str]]:
        expires = {role: now + timedelta(days=n) for role, n in days.items()}
        found = trust.judge(trust.Metadata(expires, dict.fromkeys(expires, 1)), now)
        return [(c.verdict, c.code) for c in found]

    assert codes(root=100, timestamp=1, snapshot=5, targets=50) == [("ok", "")]
    assert codes(root=100, timestamp=-1, snapshot=5, targets=50) == [("fail", "timestamp-expired")]
    assert codes(root=3, timestamp=1, snapshot=5, targets=50) == [("warn", "")]


def test_the_clock_and_the_models() -> None:
    assert identity.judge_clock(identity.Clock(1_000.0, 5_000.0)).code == "clock-behind"
    slot = Slot(sha256="0" * 64, version=3)
    bad = ModelState(model="m", state="failed", active=slot, error_code="self-test-latency", error="too slow")
    checks = installed.judge(installed.Installed(InstallState(assignment_version=1).with_model(bad)))
    (found,) = [c for c in checks if c.name == "model"]
    assert found.verdict == "fail" and "serves version 3" in found.text and "too slow on this device" in found.text


def test_an_engine_that_a_model_needs_and_a_package_that_is_gone() -> None:
    found = machine.Machine("1", "3", "x86_64", (), "", "", {"onnxruntime": "1"}, frozenset({"litert"}), {"numpy": ""})
    verdicts = {c.name: (c.verdict, c.code) for c in machine.judge(found)}
    assert verdicts["engines"] == ("fail", "engine-missing") and verdicts["packages"][0] == "fail"


# -- the network ---------------------------------------------------------------------------------


@contextmanager
def listener(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that treats each connection by `answer`."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def endpoint(port: int, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Endpoint:
    return Endpoint(host, port, "device-1", tls=tls)


def test_a_name_that_does_not_resolve_and_a_port_that_nobody_has(unused_port: int) -> None:
    assert network.reach_broker(endpoint(1, "nobody.invalid"), say_connect=True).ended == "name"
    refused = network.reach_broker(endpoint(unused_port), say_connect=True)
    assert refused.ended == "connection" and "nothing listens" in refused.why


def test_a_listener_that_is_no_broker_or_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    with listener(lambda c: c.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        assert "not an MQTT" in network.reach_broker(endpoint(port), say_connect=True).why
    monkeypatch.setattr(network, "TIMEOUT_S", 0.5)
    with listener(lambda c: c.recv(1000) and None) as port:
        assert network.reach_broker(endpoint(port), say_connect=True).ended == "answer"
    with listener(lambda c: c.recv(1000) and None) as port:
        context = ssl.create_default_context()
        assert network.reach_broker(endpoint(port, tls=context), say_connect=True).ended == "tls"


def test_a_refusal_is_given_in_the_brokers_words() -> None:
    def refuse(connection: socket.socket) -> None:
        assert connection.recv(1000) == connect_packet("device-1")
        connection.sendall(b"\x20\x03\x00\x87\x00")

    with listener(refuse) as port, socket.create_connection(("127.0.0.1", port)) as sock:
        assert greet(sock, "device-1", 5.0) == "the broker refuses this device: not authorized"


@pytest.mark.parametrize(("value", "wire"), [(0, b"\x00"), (127, b"\x7f"), (128, b"\x80\x01"), (16_383, b"\xff\x7f")])
def test_variable_byte_integers(value: int, wire: bytes) -> None:
    assert variable_length(value) == wire


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("SSLV3_ALERT_CERTIFICATE_REVOKED", "revoked"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "expired"),
        ("TLSV1_ALERT_UNKNOWN_CA", "does not trust this device's certificate"),
        ("WRONG_VERSION_NUMBER", "does not speak TLS"),
    ],
)
def test_alerts_in_words(reason: str, says: str) -> None:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    assert says in network.tls_words(error)
    check = network.judge_reach("broker", network.Reach("h:1", "tls", network.tls_words(error)))
    assert check.verdict == "fail" and (check.code == "device-revoked") == (says == "revoked")


def test_the_settings_of_the_examination_have_defaults() -> None:
    assert AgentConfig().min_free_mib > 0
