"""Guards against a disk that forgets or flips bits: a device that serves bytes nobody verified, takes damage for a
fresh start, forgets in silence which assignment was the newest, or is lost for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgewise_agent.__main__ import main
from edgewise_agent.errors import StateError
from edgewise_agent.install.state import InstallState, ModelState, load_state, recover_state, save_state
from edgewise_agent.twin import KEPT_DAMAGED, seal, whole
from hypothesis import given
from hypothesis import strategies as st


def flip(path: Path, place: int = -1) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    data[place if place >= 0 else len(data) // 2] ^= 1
    path.write_bytes(data)


def model_file(state: Path, sha256: str) -> Path:
    return state / "store" / "bundles" / sha256 / "model.onnx"


@pytest.fixture
def two_versions(voice: Any, run_agent: Callable[..., Any], simulator: Any, tmp_path: Path) -> tuple[Path, Any, Any]:
    """A stopped device that serves version 2, with version 1 to fall back to."""
    files = []
    with run_agent():
        for version in (1, 2):
            file, data = simulator.make_bundle(version)
            voice.release(file, data)
            voice.assign((file,), version)
            voice.wait_model("committed", version)
            files.append(file)
    voice.forget()
    return tmp_path / "state", files[0], files[1]


@given(
    st.binary(max_size=200).map(lambda b: b'{"a": "' + b.hex().encode() + b'"}'),
    st.integers(0, 10_000),
    st.integers(0, 7),
)
def test_a_flipped_bit_in_a_sealed_document_is_found(document: bytes, place: int, bit: int) -> None:
    data = bytearray(seal(document))
    assert whole(bytes(data)) is True
    data[place % len(data)] ^= 1 << bit
    # Where the seal itself is unreadable, the document is taken for one of an older agent: its content is untouched.
    assert whole(bytes(data)) is not True


def test_a_damaged_state_comes_from_its_copy_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "installed.json"
    save_state(path, InstallState(assignment_version=7, models={"m": ModelState(model="m", boots=2)}))
    kept = load_state(path)
    text = path.read_text().replace('"assignment_version": 7', '"assignment_version": 1')
    path.write_text(text)
    assert load_state(path) == kept, "the copy is read by those who only look, too"
    found, problem = recover_state(path)
    assert found == kept and "damaged" in problem and "nothing is lost" in problem
    assert [p.name for p in tmp_path.glob("installed.json.damaged-*")]
    save_state(path, found)
    assert recover_state(path) == (kept, "")


def test_a_state_whose_copies_are_both_damaged_is_not_taken_for_a_fresh_device(tmp_path: Path) -> None:
    path = tmp_path / "installed.json"
    save_state(path, InstallState(assignment_version=7))
    flip(path)
    flip(tmp_path / "installed.json.copy")
    with pytest.raises(StateError):
        load_state(path)
    found, problem = recover_state(path)
    assert found.assignment_version == 0 and found.error_code == "state-damaged" and "lost" in found.error
    assert problem == found.error


def test_a_state_that_is_gone_while_its_copy_is_there_is_not_a_fresh_device(tmp_path: Path) -> None:
    path = tmp_path / "installed.json"
    save_state(path, InstallState(assignment_version=7))
    path.unlink()
    assert recover_state(path)[0].assignment_version == 7


def test_a_state_of_a_newer_agent_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "installed.json"
    path.write_text('{"spec_version": "9.0"}')
    with pytest.raises(StateError, match="newer agent"):
        recover_state(path)
    assert path.exists()


def test_the_number_of_damaged_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "installed.json"
    for n in range(KEPT_DAMAGED + 3):
        monkeypatch.setattr(time, "strftime", lambda *_, n=n: f"2026010{n}T000000Z")
        save_state(path, InstallState(assignment_version=n))
        flip(path)
        recover_state(path)
    assert len(list(tmp_path.glob("installed.json.damaged-*"))) == KEPT_DAMAGED


@pytest.mark.parametrize("damage", ["flip", "missing", "manifest"])
def test_a_damaged_active_bundle_does_not_serve_and_is_downloaded_again(
    damage: str,
    two_versions: tuple[Path, Any, Any],
    voice: Any,
    run_agent: Callable[..., Any],
    x: np.ndarray,
    simulator: Any,
) -> None:
    state, _, second = two_versions
    found = model_file(state, second.sha256)
    if damage == "missing":
        found.unlink()
    elif damage == "flip":
        flip(found)
    else:
        flip(found.with_name("manifest.json"))
    with run_agent() as device:
        # It falls back at once, and only then fetches the damaged version again.
        assert voice.wait("reported", lambda r: any(m.active_version == 1 for m in r.models), "version 1 to serve")
        voice.wait_model("committed", 2, active_version=2)
        version, logits = device.infer(x)
        assert version == 2
        np.testing.assert_allclose(logits, simulator.logits_of(2, x), rtol=1e-4, atol=1e-4)
        assert device.agent.store.open(second.sha256)


def test_with_both_bundles_damaged_nothing_serves_until_it_is_fetched_again(
    two_versions: tuple[Path, Any, Any], voice: Any, run_agent: Callable[..., Any], x: np.ndarray
) -> None:
    state, first, second = two_versions
    flip(model_file(state, first.sha256))
    flip(model_file(state, second.sha256))
    with run_agent() as device:
        voice.wait("reported", lambda r: any(m.active_version == 0 for m in r.models), "that nothing serves")
        voice.wait_model("committed", 2, active_version=2)
        assert device.infer(x)[0] == 2


@pytest.mark.parametrize("name", ["installed.json", "clock", "outbox.sqlite"])
def test_a_damaged_file_is_set_aside_said_and_survived(
    name: str, two_versions: tuple[Path, Any, Any], voice: Any, run_agent: Callable[..., Any], x: np.ndarray
) -> None:
    state = two_versions[0]
    (state / name).write_bytes(b"\x00" * 4096)
    with run_agent() as device:
        assert device.infer(x)[0] == 2
        voice.wait("event", lambda e: e.code in ("state-damaged", "outbox-damaged"), "an event of the damage")
        assert list(state.glob(f"{name}.damaged*"))
        assert device.agent.installer.state.assignment_version == 2


def test_with_both_copies_of_the_state_gone_bad_the_device_says_so_and_takes_up_its_assignment(
    two_versions: tuple[Path, Any, Any], voice: Any, run_agent: Callable[..., Any], x: np.ndarray
) -> None:
    state = two_versions[0]
    for name in ("installed.json", "installed.json.copy"):
        flip(state / name)
    with run_agent() as device:
        event = voice.wait("event", lambda e: e.code == "state-damaged", "an event of the loss")
        assert event.kind == "security" and "assignment's version" in event.text
        voice.wait_model("committed", 2, active_version=2)
        assert device.infer(x)[0] == 2


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_damaged_metadata_are_fetched_again(
    role: str, two_versions: tuple[Path, Any, Any], voice: Any, run_agent: Callable[..., Any], simulator: Any
) -> None:
    path = two_versions[0] / "metadata" / f"{role}.json"
    path.resolve().write_bytes(b"\x00" * 100)
    with run_agent():
        file, data = simulator.make_bundle(3)
        voice.release(file, data)
        voice.assign((file,), 3)
        voice.wait_model("committed", 3, active_version=3)


@pytest.mark.parametrize("name", ["identity.json", "key.pem", "certificate.pem", "fleet-ca.pem"])
def test_a_damaged_identity_is_refused_with_what_to_do(
    name: str,
    two_versions: tuple[Path, Any, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgewise_agent.log.set_up", lambda _level: None)  # It would outlive the test.
    state = two_versions[0]
    (state / "identity" / name).write_bytes(b"\x00" * 100)
    assert main(["run", "--state", str(state)]) == 4
    said = capsys.readouterr().err
    assert "identity" in said and "what to do: " in said and "enrolment file" in said
    assert main(["doctor", "--offline", "--state", str(state)]) == 1
    assert "[identity]" in capsys.readouterr().out


def test_a_clock_before_the_floor_serves_installs_nothing_and_recovers(
    two_versions: tuple[Path, Any, Any],
    voice: Any,
    run_agent: Callable[..., Any],
    simulator: Any,
    x: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with run_agent() as device:
        clock = device.agent._clock
        monkeypatch.setattr(clock, "_now", lambda: clock.floor - 3600)
        file, data = simulator.make_bundle(3)
        voice.release(file, data)
        voice.assign((file,), 3)
        voice.wait("reported", lambda r: r.error_code == "clock-behind", "the clock to be named")
        assert device.infer(x)[0] == 2
        monkeypatch.undo()
        monkeypatch.setattr(clock, "_now", time.time)
        voice.wait_model("committed", 3, active_version=3)


# -- a model that ends the process ---------------------------------------------------------------

DEADLY = """
import os, signal, sys
from edgewise_agent.serving.table import ModelTable
activate = ModelTable.activate
def deadly(self, model, version, *rest, **more):
    if version in {versions}:
        os.kill(os.getpid(), signal.{signal})
    return activate(self, model, version, *rest, **more)
ModelTable.activate = deadly
from edgewise_agent.__main__ import main
sys.exit(main(["run", "--state", {state!r}]))
"""


def starts(state: Path, versions: set[int], how: str, limit: int) -> tuple[int, subprocess.Popen[str]]:
    """Start until a start survives, as a service manager does; how many died, and the survivor."""
    code = DEADLY.format(versions=sorted(versions), signal=how, state=str(state))
    for died in range(limit):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert process.stdout is not None
        if process.stdout.readline().startswith("serving"):
            return died, process
        assert process.wait(20) < 0, "the agent ended, but not of the signal"
        process.communicate()
    raise AssertionError(f"it died {limit} times")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGSEGV", "SIGKILL"])
def test_a_model_whose_loading_kills_the_process_gives_way_to_the_one_before_and_then_to_none(
    how: str,
    two_versions: tuple[Path, Any, Any],
    voice: Any,
    mosquitto: Any,
    x: np.ndarray,
    infer_at: Callable[..., Any],
) -> None:
    state = two_versions[0]
    (state / "agent.toml").write_text(
        "http_port = 0\nreconnect_min_s = 0.1\nmin_free_mib = 1\n[probation]\nmax_boots = 2\n"
    )
    died, process = starts(state, {2}, how, 8)
    assert died == 2
    assert voice.wait_model("rolled_back", 2, active_version=1).error_code == "boot-loop"
    process.kill()
    process.communicate()
    died, process = starts(state, {1, 2}, how, 8)
    assert died <= 3
    voice.wait("reported", lambda r: all(m.active_version == 0 for m in r.models), "that nothing serves")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0, "the agent lives without a model"


@pytest.mark.slow
def test_a_model_is_not_blamed_for_another_whose_loading_kills_the_process(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, tmp_path: Path
) -> None:
    files = []
    for version, model in ((1, "innocent"), (2, "tiny")):
        file, data = simulator.make_bundle(version, model=model)
        voice.release(file, data)
        files.append(file)
    with run_agent():
        voice.assign(tuple(files), 1)
        voice.wait(
            "reported", lambda r: [m.state for m in r.models] == ["committed", "committed"], "both models to serve"
        )
    state = tmp_path / "state"
    (state / "agent.toml").write_text(
        "http_port = 0\nreconnect_min_s = 0.1\nmin_free_mib = 1\n[probation]\nmax_boots = 2\n"
    )
    voice.forget()
    _, process = starts(state, {2}, "SIGSEGV", 8)
    report = voice.wait("reported", lambda r: any(m.error_code == "boot-loop" for m in r.models), "the culprit")
    blamed = {m.model: (m.active_version, m.error_code) for m in report.models}
    assert blamed == {"innocent": (1, ""), "tiny": (0, "boot-loop")}
    process.kill()
    process.communicate()
