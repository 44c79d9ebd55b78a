"""The danger: an update of the agent itself leaves a device that nobody can reach any more.

Real processes: the launcher, agents from real wheels, Mosquitto. The fleet's voice is the simulator's.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgewise_agent.selfupdate import boot as boots

MODEL = "edgewise-agent"
BASE_VERSION = "0.1.0"


def born(voice: Any, version: str) -> Any:
    return voice.wait(
        "status", lambda s: s.online and s.facts and s.facts.agent_version == version, f"a birth of {version}", 40
    )


def agent_report(voice: Any, state: str, **fields: Any) -> Any:
    def wanted(report: Any) -> bool:
        return any(
            m.model == MODEL and m.state == state and all(getattr(m, k) == v for k, v in fields.items())
            for m in report.models
        )

    report = voice.wait("reported", wanted, f"the agent {state} {fields}", 60)
    return next(m for m in report.models if m.model == MODEL)


@pytest.fixture
def serving(voice: Any, simulator: Any, device: Any, serves: Callable[[Any], int]) -> Any:
    """The device runs, and its model serves; returns the model's file, which every assignment goes on naming."""
    file, data = simulator.make_bundle(1)
    voice.release(file, data)
    voice.assign((file,), 1)
    device.start()
    device.wait_for("the model serves", lambda: serves(device) == 1)
    voice.wait_model("committed", 1)
    born(voice, BASE_VERSION)
    return file


def offer(voice: Any, simulator: Any, agents: Any, wheels: list[Path], *with_files: Any, version: int = 2) -> Any:
    """Release an agent bundle, and assign it besides the models."""
    file, data, _ = agents.bundle(wheels, simulator.sign_as, simulator.CHANNEL)
    voice.release(file, data)
    voice.assign((*with_files, file), version)
    return file


def test_an_update_is_reported_survives_restarts_and_can_be_taken_back(
    voice: Any, simulator: Any, device: Any, serving: Any, agents: Any, wheels: list[Path], serves: Any
) -> None:
    stop, gaps = threading.Event(), []

    def ask() -> None:
        last = time.monotonic()
        while not stop.is_set():
            if serves(device) == 1:
                gaps.append(time.monotonic() - last)
                last = time.monotonic()
            stop.wait(0.01)

    asking = threading.Thread(target=ask)
    asking.start()
    file = offer(voice, simulator, agents, wheels, serving)
    born(voice, "0.2.0")
    report = agent_report(voice, "committed", active_version=file.custom.version)
    assert report.self_test == {"models": 1.0}
    device.wait_for("the model serves again", lambda: serves(device) == 1)
    stop.set()
    asking.join()
    print(f"local serving paused for {max(gaps):.2f} s")
    boot = boots.load(device.state)
    assert (boot.state, boot.current, boot.sha256) == ("steady", "a", file.sha256)

    voice.forget()
    assert device.stop() == 0
    device.start()
    born(voice, "0.2.0")

    newer = agents.renamed(wheels, device.state.with_name("newer"), "0.3.0")
    offer(voice, simulator, agents, newer, serving, version=3)
    born(voice, "0.3.0")
    agent_report(voice, "committed", active_version=3_000, previous_version=2_000)
    assert boots.load(device.state).current == "b"

    voice.forget()
    voice.assign((serving, file), 4)
    born(voice, "0.2.0")
    agent_report(voice, "committed", active_version=2_000)

    voice.forget()
    voice.assign((serving,), 5)
    born(voice, BASE_VERSION)
    assert boots.load(device.state).current == boots.BASE
    device.wait_for("the model serves", lambda: serves(device) == 1)
    assert device.stop() == 0


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("CRASHES", "agent-boot-loop"),
        pytest.param("HANGS", "agent-not-confirmed", marks=pytest.mark.slow),
        pytest.param("NEVER_ONLINE", "agent-not-confirmed", marks=pytest.mark.slow),
    ],
)
def test_a_broken_agent_gives_way_to_the_one_before(
    voice: Any, simulator: Any, device: Any, agents: Any, wheels: list[Path], serving: Any, serves: Any, kind: str,
    code: str, tmp_path: Path,
) -> None:  # fmt: skip
    device.stop()
    voice.forget()
    device.start(EDGEWISE_AGENT_AGENT_CONFIRM_S="30" if kind == "CRASHES" else "10")
    born(voice, BASE_VERSION)
    broken = agents.renamed(wheels, tmp_path / "broken", "0.2.1", {agents.RUN: getattr(agents, kind)})
    file = offer(voice, simulator, agents, broken, serving)
    report = agent_report(voice, "rolled_back", target_version=2_001, error_code=code)
    assert report.active_version == 0
    voice.wait("event", lambda e: e.kind == "deployment" and e.code == code, "the event")
    device.wait_for("the model serves", lambda: serves(device) == 1)
    boot = boots.load(device.state)
    assert (boot.current, boot.failed, boot.state) == (boots.BASE, file.sha256, "steady")
    voice.forget()
    offer(voice, simulator, agents, wheels, serving, version=3)
    born(voice, "0.2.0")


@pytest.mark.parametrize(
    ("add", "code"),
    [
        ({"edgewise_agent/app.py": "CANNOT_IMPORT"}, "agent-import"),
        ({"METADATA": "\nRequires-Dist: edgewise-no-such-package>=3"}, "agent-requirements"),
        pytest.param({"METADATA": "\nRequires-Dist: msgspec<0.1"}, "agent-requirements", marks=pytest.mark.slow),
        pytest.param(
            {"edgewise_agent/selfupdate/checking.py": "import os\nos.abort()\n"},
            "agent-self-check-crashed",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_agent_that_fails_its_own_check_is_never_started(
    voice: Any, simulator: Any, device: Any, serving: Any, agents: Any, wheels: list[Path], tmp_path: Path, add: Any,
    code: str,
) -> None:  # fmt: skip
    broken = {name: getattr(agents, text, text) for name, text in add.items()}
    changed = agents.renamed(wheels, tmp_path / "broken", "0.2.2", broken)
    offer(voice, simulator, agents, changed, serving)
    agent_report(voice, "failed", target_version=2_002, error_code=code)
    assert boots.load(device.state).current == boots.BASE
    assert device.process.poll() is None


def test_an_agent_signed_by_a_workers_key_is_refused(
    voice: Any, simulator: Any, device: Any, serving: Any, agents: Any, wheels: list[Path]
) -> None:
    file, data, _ = agents.bundle(wheels, simulator.sign_as, simulator.CHANNEL)
    voice.release(file, data, by_worker=True)
    voice.assign((serving, file), 2)
    voice.wait_refusal("agent-not-signed-offline")
    voice.wait_security("agent-not-signed-offline")
    assert not (device.state / "agent").exists()


def test_without_its_launcher_an_agent_is_not_changed(
    voice: Any, simulator: Any, agents: Any, wheels: list[Path], run_agent: Callable[..., Any]
) -> None:
    with run_agent() as running:
        offer(voice, simulator, agents, wheels)
        report = agent_report(voice, "failed", error_code="does-not-fit")
        assert "edgewise-agent-launcher" in report.error
        assert not (running.state / "agent").exists()


# -- kill -9 ---------------------------------------------------------------------------------

SHIM = """
import os, pathlib, re, signal
_replace = pathlib.Path.replace
_rename = pathlib.Path.rename
_at, _when, _once = os.environ["KILL_AT"], os.environ["KILL_WHEN"], os.environ["KILL_ONCE"]
_STATE = re.compile(rb'"edgewise-agent":\\s*\\{\\s*"model":\\s*"edgewise-agent",\\s*"state":\\s*"(\\w+)"')

def _label(source, target):
    name = pathlib.Path(target).name
    if name == "boot.json":
        found = re.search(rb'"state": "(\\w+)", "current": "(\\w+)"', source.read_bytes())
        return "boot-%s-%s" % tuple(part.decode() for part in found.groups())
    if name == "installed.json":
        found = _STATE.search(source.read_bytes())
        return "installed-" + found[1].decode() if found else ""
    return "slot" if pathlib.Path(target).parent.name == "slots" else ""

def _wrap(original):
    def act(self, target):
        hit = _label(self, target) == _at
        if hit:
            try:
                os.close(os.open(_once, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                hit = False
        if hit and _when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = original(self, target)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return act

pathlib.Path.replace = _wrap(_replace)
pathlib.Path.rename = _wrap(_rename)
"""
"""A `sitecustomize` that kills its process, once, around a rename that makes a state durable."""

POINTS = [
    "installed-downloading", "installed-verifying", "installed-staged", "installed-self_test", "slot",
    "installed-probation", "boot-trial-a", "boot-steady-a", "installed-committed",
]  # fmt: skip
QUICK_POINTS = {("boot-trial-a", "after")}


@pytest.mark.parametrize(
    ("point", "when"),
    [
        pytest.param(point, when, marks=() if (point, when) in QUICK_POINTS else pytest.mark.slow)
        for point in POINTS
        for when in ("before", "after")
    ],
)
def test_an_update_killed_anywhere_goes_on(
    voice: Any, simulator: Any, device: Any, serving: Any, agents: Any, wheels: list[Path], serves: Any, tmp_path: Path,
    point: str, when: str,
) -> None:  # fmt: skip
    device.stop()
    shim = tmp_path / "shim"
    shim.mkdir()
    (shim / "sitecustomize.py").write_text(SHIM)
    once = tmp_path / "killed"
    device.start(PYTHONPATH=str(shim), KILL_AT=point, KILL_WHEN=when, KILL_ONCE=str(once))
    device.wait_for("the model serves", lambda: serves(device) == 1)
    file = offer(voice, simulator, agents, wheels, serving)

    def updated() -> bool:
        device.keep_running()
        return any(
            leaf == "reported" and m.model == MODEL and (m.state, m.active_version) == ("committed", 2_000)
            for leaf, said in voice.heard
            for m in getattr(said, "models", ())
        )

    device.wait_for("the update is committed", updated, 60)
    assert once.exists(), "nothing was killed"
    device.wait_for("the model serves", lambda: (device.keep_running(), serves(device) == 1)[1])
    boot = boots.load(device.state)
    assert (boot.state, boot.current, boot.sha256) == ("steady", "a", file.sha256)


# -- the launcher alone ------------------------------------------------------------------------


def fake_slot(state: Path, slot: str, code: str) -> None:
    package = boots.site_of(state, slot) / "edgewise_agent"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(code)


def launch(state: Path, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgewise_agent.launcher", *(arguments or ("run",)), "--state", str(state)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def test_the_launcher_passes_on_what_the_agent_ends_with(tmp_path: Path) -> None:
    assert launch(tmp_path).returncode == 3, "the base is not enrolled"
    for status, seen in (("7", 7), ("-9", 137)):
        state = tmp_path / status
        state.mkdir()
        fake_slot(state, "a", f"import os, sys\ns = {status}\nos.kill(os.getpid(), -s) if s < 0 else sys.exit(s)")
        boots.save(state, boots.Boot(current="a", sha256="1" * 64))
        assert launch(state).returncode == seen


def test_other_subcommands_are_run_by_the_current_agent(tmp_path: Path) -> None:
    fake_slot(tmp_path, "b", "import sys\nprint('b was asked', sys.argv[1])\n")
    boots.save(tmp_path, boots.Boot(current="b", sha256="1" * 64))
    done = launch(tmp_path, "status")
    assert (done.returncode, done.stdout) == (0, "b was asked status\n")


def test_a_slot_that_is_gone_is_given_up(tmp_path: Path) -> None:
    boots.save(tmp_path, boots.Boot(current="a", sha256="1" * 64))
    done = launch(tmp_path)
    assert done.returncode == 3
    boot = boots.load(tmp_path)
    assert (boot.current, boot.code, boot.failed) == (boots.BASE, "agent-slot-damaged", "1" * 64)


def test_a_signal_to_the_launcher_ends_the_agent_in_order(tmp_path: Path) -> None:
    fake_slot(
        tmp_path,
        "a",
        "import signal, sys, pathlib, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: ((here / 'told').touch(), sys.exit(0)))\n"
        "(here / 'ready').touch()\nwhile True: time.sleep(0.05)\n",
    )
    boots.save(tmp_path, boots.step(boots.Boot(), boots.Switch("a", "1" * 64, True, 60.0)))
    process = subprocess.Popen([sys.executable, "-m", "edgewise_agent.launcher", "run", "--state", str(tmp_path)])
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert (tmp_path / "told").exists()
    record = json.loads((boots.folder_of(tmp_path) / "boot.json").read_text())
    assert (record["state"], record["boots"]) == ("trial", 1)
