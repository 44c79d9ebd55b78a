"""Danger: what operators copy, and no test runs: a unit that names no program, a port that nothing listens on, a volume
that two containers see under different names."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from edgewise_cli.app import app as edgewise
from edgewise_server.__main__ import _parser
from edgewise_server.broker.mosquitto import Listening, access_list, configuration
from edgewise_server.broker.setup import BrokerOptions, set_up_mosquitto
from edgewise_server.broker.written import marked
from edgewise_server.context import online_description, open_context
from edgewise_server.settings import Settings, load_settings
from edgewise_server.setup import initialize
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
SERVICES = sorted(path.name for path in (DEPLOY / "systemd").glob("*.service"))
STATE = "/var/lib/edgewise"


def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_the_example_is_what_the_generator_writes():
    """To renew it, copy what `edgewise-server init --broker mosquitto --broker-host NAME` wrote as user `edgewise`."""
    listening = Listening(Path(STATE, "broker"), 8883, "", "edgewise")
    assert (DEPLOY / "mosquitto" / "mosquitto.conf").read_text() == marked(configuration(listening))
    assert (DEPLOY / "mosquitto" / "acl").read_text() == marked(access_list())


# -- commands ---------------------------------------------------------------------------------


def check_command(words):
    """Parse a command line by the very parser of its program."""
    program, *arguments = words
    if program == "edgewise-server":
        _parser().parse_args(arguments)
    elif program == "edgewise":
        command, rest = get_command(edgewise), list(arguments)
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        with command.make_context("edgewise", rest, resilient_parsing=True) as context:
            assert not context.args, f"not understood: {context.args}"
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known
    else:
        done = subprocess.run([BIN / program, "--help"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and arguments[0] in done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_every_unit_starts_a_command_that_exists(name):
    text = (DEPLOY / "systemd" / name).read_text()
    (line,) = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    words = shlex.split(line)
    if words[0] == "/usr/sbin/mosquitto":
        assert words[1:] == ["-c", f"{STATE}/broker/mosquitto.conf"]
        return
    folder, program = words[0].rsplit("/", 1)
    assert folder == "/opt/edgewise/bin"
    assert (BIN / program).exists()
    if program != "edgewise-agent-launcher":
        check_command([program, *words[1:]])
    else:
        check_command(["edgewise-agent", *words[1:]])
    for path in re.findall(r"/var/lib/([\w-]+)", line):
        assert f"StateDirectory={path}" in text.splitlines()


@pytest.mark.parametrize("name", SERVICES)
def test_units_are_hardened_and_run_as_nobody_of_importance(name):
    lines = (DEPLOY / "systemd" / name).read_text().splitlines()
    for wanted in ("NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes", "UMask=0077"):
        assert wanted in lines, wanted
    (user,) = [line for line in lines if line.startswith("User=")]
    assert user.startswith("User=edgewise")
    if name == "edgewise-agent.service":
        assert {"Type=notify", "NotifyAccess=all", "WatchdogSec=60"} <= set(lines)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_accepts_the_units(tmp_path):
    for path in (DEPLOY / "systemd").iterdir():
        text = path.read_text().replace("/opt/edgewise/bin", str(BIN))
        # systemd looks whether users and files exist, which are made when it is installed
        text = re.sub(r"^(User|Group|SupplementaryGroups|EnvironmentFile)=.*\n", "", text, flags=re.MULTILINE)
        (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    told = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "edgewise" in line]
    assert done.returncode == 0 and not told, done.stderr


# -- compose ----------------------------------------------------------------------------------


def test_images_name_no_registry_host():
    images = [service["image"] for service in compose()["services"].values()]
    for path in (DEPLOY / "images").iterdir():
        images += re.findall(r"^FROM (\S+)", path.read_text(), re.MULTILINE)
    for image in images:
        assert "/" not in image and re.fullmatch(r"[a-z-]+(:[\w.-]+)?", image), image


def test_dockerfiles_copy_what_there_is():
    for service in compose()["services"].values():
        if "build" not in service:
            continue
        assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
        text = (ROOT / service["build"]["dockerfile"]).read_text()
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
            source = next(word for word in line.split() if not word.startswith("--"))
            assert (ROOT / source).exists(), source
        for path in re.findall(r"/source/(\w+)", text):
            assert (ROOT / path / "pyproject.toml").exists(), path


def test_every_command_and_every_setting_of_the_compose_file_exists():
    services = compose()["services"]
    check_command(services["init"]["command"])
    check_command(services["server"]["command"])
    check_command(["edgewise", *services["worker"]["command"]])
    for service in services.values():
        for name in service.get("environment", {}):
            if name.startswith("EDGEWISE_SERVER_"):
                assert name.removeprefix("EDGEWISE_SERVER_").lower() in Settings.model_fields, name
    text = (DEPLOY / "mosquitto" / "entrypoint.sh").read_text()
    for name in services["mosquitto"]["environment"]:
        assert name in text


def test_ports_volumes_and_hosts_agree(tmp_path, monkeypatch):
    services = compose()["services"]
    given = _parser().parse_args(services["init"]["command"][1:])
    set_up_mosquitto(
        tmp_path, BrokerOptions(("fleet.example.org", "mosquitto"), given.broker_port, given.broker_websocket_port)
    )
    for name, value in services["server"]["environment"].items():
        if "$" not in value:
            monkeypatch.setenv(name, value)
    settings = load_settings(tmp_path)
    inside = {int(port.split(":")[1]) for port in services["server"]["ports"]}
    assert inside == {settings.http_port, settings.websocket_port}
    assert [int(port.split(":")[1]) for port in services["mosquitto"]["ports"]] == [settings.broker_port]
    assert settings.broker_host == "mosquitto" in services
    assert "mosquitto" in given.broker_host, "the broker's certificate needs the name by which the server reaches it"
    where = {
        "init": services["init"]["volumes"],
        "server": services["server"]["volumes"],
        "mosquitto": [f"{v['source']}:{v['target']}" for v in services["mosquitto"]["volumes"]],
    }
    assert all(volumes == [f"state:{STATE}"] for volumes in where.values()), "mosquitto.conf names absolute paths"
    assert str(given.state) == STATE
    assert services["mosquitto"]["environment"]["EDGEWISE_BROKER_FILES"] == f"{STATE}/broker"
    named = {v.split(":")[0] for s in services.values() for v in s.get("volumes", []) if isinstance(v, str)}
    assert set(compose()["volumes"]) == {name for name in named if name.isalpha()}
    networks = {n for s in services.values() for n in s["networks"]}
    assert set(compose()["networks"]) == networks
    assert "outside" not in services["postgres"]["networks"]


def test_one_user_owns_the_state_in_both_images():
    users = {
        name: re.findall(r"useradd --uid (\d+)", (DEPLOY / "images" / f"{name}.Dockerfile").read_text())
        for name in ("server", "mosquitto", "worker")
    }
    assert users["server"] == users["mosquitto"] != users["worker"]


# -- the broker's entry point, run --------------------------------------------------------------


def wait_for(look, timeout_s=20.0):
    deadline, pause = time.monotonic() + timeout_s, threading.Event()
    while not (found := look()):
        assert time.monotonic() < deadline, "not in time"
        pause.wait(0.02)
    return found


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.skipif(not Path("/usr/sbin/mosquitto").exists(), reason="no mosquitto")
def test_the_entry_point_waits_for_certificates_reloads_and_ends_in_order(tmp_path, server_kit):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    state = tmp_path / "state"
    set_up_mosquitto(state, BrokerOptions(port=port))
    initialize(load_settings(state))
    context = open_context(load_settings(state))
    log = tmp_path / "log"
    environment = {
        "PATH": f"/usr/sbin:{os.environ['PATH']}",
        "EDGEWISE_BROKER_FILES": str(state / "broker"),
        "EDGEWISE_BROKER_LOOK_S": "0.2",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [DEPLOY / "mosquitto" / "entrypoint.sh"], env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL
        )
    try:
        wait_for(lambda: "waiting for" in log.read_text())
        assert not listens(port)
        ceremony = server_kit.Ceremony(online_description(context.keys, context.authority))
        context.repository.install(ceremony.document(), now=server_kit.NOW, actor="test")
        context.refresh_crl(force=True)
        wait_for(lambda: listens(port))
        (state / "broker" / "mosquitto.pid").unlink(missing_ok=True)  # as in a container: another name space of ids
        context.refresh_crl(force=True)
        wait_for(lambda: "reads them again" in log.read_text())
        assert process.poll() is None and listens(port)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()
        assert not listens(port)
    finally:
        process.kill()
        process.wait(10)
        context.close()
