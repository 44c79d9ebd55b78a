"""Danger: the program that operators start differs from the app that tests build: init, run, token, shutdown."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from edgewise_server.__main__ import main
from edgewise_server.errors import SettingsError
from edgewise_server.settings import load_settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_init_makes_a_private_state_folder_once(tmp_path, capsys):
    state = tmp_path / "state"
    assert main(["init", "--state", str(state)]) == 0
    first = capsys.readouterr().out
    token = (state / "admin.token").read_text().strip()
    assert token.startswith("ew_") and token in first
    assert (state / "admin.token").stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700
    online = json.loads((state / "online.json").read_text())
    assert set(online) == {"snapshot", "timestamp", "director", "keyids", "intermediate_csr_pem"}
    assert "PRIVATE" not in (state / "online.json").read_text()
    keys = {path.name: path.read_bytes() for path in (state / "keys").iterdir()}
    assert main(["init", "--state", str(state)]) == 0
    assert token not in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (state / "keys").iterdir()} == keys
    assert json.loads((state / "online.json").read_text()) == online


def test_commands_fail_with_a_sentence_and_a_status(tmp_path, capsys):
    assert main(["run", "--state", str(tmp_path / "nowhere")]) == 1
    assert "init" in capsys.readouterr().err
    main(["init", "--state", str(tmp_path)])
    capsys.readouterr()
    assert main(["token", "--state", str(tmp_path), "--name", "../x"]) == 1
    assert "not valid" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        main(["run"])
    assert usage.value.code == 2


def test_settings_come_from_file_environment_and_arguments_in_this_order(tmp_path, monkeypatch):
    (tmp_path / "server.toml").write_text('http_port = 1001\nbroker_port = 1002\npublic_url = "http://a:1"\n')
    monkeypatch.setenv("EDGEWISE_SERVER_BROKER_PORT", "2002")
    settings = load_settings(tmp_path, public_url="http://b:2", http_host=None)
    assert (settings.http_port, settings.broker_port, settings.base_url) == (1001, 2002, "http://b:2")
    (tmp_path / "server.toml").write_text("http_prot = 1\n")
    with pytest.raises(SettingsError, match="http_prot"):
        load_settings(tmp_path)
    (tmp_path / "server.toml").write_text("http_port = 70000\n")
    with pytest.raises(SettingsError, match="http_port"):
        load_settings(tmp_path)
    (tmp_path / "server.toml").write_text("not toml")
    with pytest.raises(SettingsError):
        load_settings(tmp_path)


def test_the_whole_server_starts_serves_and_stops(tmp_path):
    state, port = tmp_path / "state", free_port()
    main(["init", "--state", str(state)])
    environment = os.environ | {"EDGEWISE_SERVER_BROKER_PORT": str(free_port())}
    command = [sys.executable, "-m", "edgewise_server", "run", "--state", str(state), "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}/api/v1"
        wait_for(url, process)
        token = (state / "admin.token").read_text().strip()
        status = httpx.get(f"{url}/status", headers={"Authorization": f"Bearer {token}"}).json()
        assert status["roles"] == ["api", "bridge", "broker", "orchestrator", "signer"]
        assert status["counts"]["devices"] == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        text = (tmp_path / "log").read_text()
        assert token not in text and "Traceback" not in text, text
    finally:
        process.kill()
        process.wait(10)


def test_roles_run_apart_and_stop(tmp_path):
    state = tmp_path / "state"
    main(["init", "--state", str(state)])
    environment = os.environ | {"EDGEWISE_SERVER_BROKER_PORT": str(free_port())}
    command = [sys.executable, "-m", "edgewise_server", "run", "--state", str(state), "--role", "bridge"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        # its first words are that the broker runs, or that the bridge is connected
        assert process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=30)
        assert process.returncode == 0, rest
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait(10)


def wait_for(url, process):
    deadline, pause = time.monotonic() + 60, threading.Event()
    while True:
        assert process.poll() is None and time.monotonic() < deadline, "the server does not start"
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pause.wait(0.05)


def test_the_openapi_document_says_what_every_operation_does(api):
    document = api.nobody.get("/openapi.json").json()
    operations = [op for path in document["paths"].values() for op in path.values()]
    assert len(operations) > 50
    assert [op["operationId"] for op in operations if not op.get("summary")] == []
    assert len({op["operationId"] for op in operations}) == len(operations)
