"""Guards against an agent that does not bring an assigned model into service, or loses one that works.

A real agent over a real broker, with real TUF metadata, chunks, ONNX models and HTTP.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgewise_agent.__main__ import main
from edgewise_agent.config import ProbationConfig, SelfTestConfig
from edgewise_agent.errors import StateError
from edgewise_protocol import topics
from edgewise_protocol.manifest import Budget


def test_an_assigned_model_serves_and_is_confirmed(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, x: np.ndarray
) -> None:
    file, data = simulator.make_bundle(1)
    voice.release(file, data)
    with run_agent() as device:
        voice.assign((file,), 1)
        report = voice.wait_model("committed", 1)
        version, logits = device.infer(x)
    assert version == 1
    np.testing.assert_allclose(logits, simulator.logits_of(1, x), atol=1e-4)
    assert report.active_version == 1 and report.self_test["max_abs_error"] < 1e-4
    assert voice.wait("reported", lambda r: r.deployment == "rollout-1", "the rollout's name").simulated
    birth = voice.wait("status", lambda s: s.online, "a birth")
    assert birth.facts.simulated and birth.facts.compatible == (simulator.BOARD,)
    assert birth.serving_url.startswith("http://127.0.0.1:")
    voice.wait("status", lambda s: not s.online and s.session == birth.session, "a farewell")


def test_the_same_over_the_embedded_broker(
    iotcore_port: int, enrol_here: Callable[..., Path], start_agent: Callable[..., Any], simulator: Any, tmp_path: Path
) -> None:
    voice = simulator.FleetVoice(iotcore_port, "device-1")
    try:
        state = enrol_here(tmp_path / "state", iotcore_port, voice.repository.root_bytes)
        file, data = simulator.make_bundle(1, padding=3_000_000)
        voice.release(file, data)
        with start_agent(state):
            voice.assign((file,), 1)
            voice.wait_model("committed", 1)
    finally:
        voice.close()


def test_a_model_signed_by_the_worker_is_trusted_in_its_channel(
    voice: Any, run_agent: Callable[..., Any], simulator: Any
) -> None:
    file, data = simulator.make_bundle(1)
    voice.release(file, data, by_worker=True)
    with run_agent():
        voice.assign((file,), 1)
        voice.wait_model("committed", 1)


def test_no_request_fails_during_updates_and_a_rollback(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, x: np.ndarray
) -> None:
    """Version 2 takes over, version 3 fails its self-test, an abort goes back to version 1 from the store."""
    bundles = [simulator.make_bundle(v, wrong_golden=v == 3) for v in (1, 2, 3)]
    for file, data in bundles:
        voice.release(file, data)
    files = [file for file, _ in bundles]
    with run_agent() as device:
        voice.assign((files[0],), 1)
        voice.wait_model("committed", 1)
        stop, answers, failures = threading.Event(), [], []

        def ask() -> None:
            while not stop.is_set():
                try:
                    version, logits = device.infer(x)
                    np.testing.assert_allclose(logits, simulator.logits_of(version, x), atol=1e-4)
                    answers.append(version)
                except Exception as error:
                    failures.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            voice.assign((files[1],), 2)
            voice.wait_model("committed", 2)
            voice.assign((files[2],), 3)
            report = voice.wait_model("failed", 3)
            assert (report.error_code, report.active_version) == ("self-test-golden", 2)
            assert report.self_test["max_abs_error"] > 0.01
            for sha256, chunks in voice.blobs.items():
                for n in range(len(chunks)):
                    voice.publish(topics.blob(sha256, n), b"")  # The revert must need no download.
            voice.assign((files[0],), 4)
            voice.wait_model("committed", 1, active_version=1, previous_version=2)
        finally:
            stop.set()
            asking.join()
    assert not failures
    assert sorted(set(answers)) == [1, 2] and answers[-1] == 1


def test_an_update_is_resumed_after_a_restart_of_the_agent(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, tmp_path: Path
) -> None:
    """The broker lacks the second batch of chunks at first; the first is not fetched twice."""
    file, data = simulator.make_bundle(1, padding=2_000_000)
    voice.release(file, data)
    voice.answer_wants = False
    chunks = voice.blobs[file.sha256]
    for n in range(8, len(chunks)):
        voice.publish(topics.blob(file.sha256, n), b"")
    part = tmp_path / "state/store/partial" / f"install-{file.sha256}"
    with run_agent(want_wait_s=30.0):
        voice.assign((file,), 1)
        voice.wait("want", lambda w: any(b.sha256 == file.sha256 for b in w.blobs), "a want")
    assert part.stat().st_size == 8 * 128 * 1024
    for n in range(8):
        voice.publish(topics.blob(file.sha256, n), b"")
    for n in range(8, len(chunks)):
        voice.publish(topics.blob(file.sha256, n), chunks[n])
    with run_agent():
        voice.wait_model("committed", 1)
    assert not part.exists()


def test_absent_chunks_are_asked_for_and_fetched(voice: Any, run_agent: Callable[..., Any], simulator: Any) -> None:
    file, data = simulator.make_bundle(1, padding=300_000)
    voice.release(file, data, retain=False)
    with run_agent(want_wait_s=5.0):
        voice.assign((file,), 1)
        voice.wait_model("committed", 1)


def test_a_chunk_that_nobody_has_fails_after_bounded_asking(
    voice: Any, run_agent: Callable[..., Any], simulator: Any
) -> None:
    file, data = simulator.make_bundle(1)
    voice.release(file, data, retain=False)
    voice.answer_wants = False
    with run_agent(want_wait_s=0.1):
        voice.assign((file,), 1)
        assert voice.wait_model("failed", 1).error_code == "chunk-unavailable"
    assert sum(leaf == "want" for leaf, _ in voice.heard) == 3


def test_a_lost_broker_is_found_again(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, mosquitto: Any, x: np.ndarray
) -> None:
    file, data = simulator.make_bundle(1)
    voice.release(file, data)
    with run_agent() as device:
        voice.assign((file,), 1)
        voice.wait_model("committed", 1)
        first = voice.wait("status", lambda s: s.online, "a birth").session
        voice.forget()
        mosquitto.stop()
        assert device.infer(x)[0] == 1
        mosquitto.start()
        voice.wait("status", lambda s: s.online and s.session != first, "a new birth")
        voice.wait_model("committed", 1)
        second, second_data = simulator.make_bundle(2)
        voice.release(second, second_data)
        voice.assign((second,), 2)
        voice.wait_model("committed", 2)


def test_a_fault_on_probation_rolls_back_and_is_not_tried_again(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, x: np.ndarray
) -> None:
    good, good_data = simulator.make_bundle(1)
    bad, bad_data = simulator.make_bundle(2)
    voice.release(good, good_data)
    voice.release(bad, bad_data)
    with run_agent() as device:
        voice.assign((good,), 1)
        voice.wait_model("committed", 1)
    with run_agent(probation=ProbationConfig(min_inferences=1000, seconds=600)) as device:
        voice.assign((bad,), 2)
        voice.wait_model("probation", 2, active_version=2)
        break_engine(device)
        with pytest.raises(OSError):
            device.infer(x)
        report = voice.wait_model("rolled_back", 2, active_version=1)
        assert report.error_code == "engine-fault" and "deliberately" in report.error
        assert device.infer(x)[0] == 1
        voice.forget()
        voice.assign((bad,), 2)
        voice.assign((good,), 3)
        voice.wait_model("committed", 1, active_version=1)
        assert not any(leaf == "reported" and r.models[0].state == "self_test" for leaf, r in voice.heard)


def break_engine(device: Any) -> None:
    """Make the active engine fail, as a runtime does that meets a broken driver."""
    from edgewise_agent.engines.errors import InferenceError

    engine = device.agent.table.lookup("tiny").lane._engine

    def fail(_inputs: Any) -> Any:
        raise InferenceError("deliberately broken")

    engine._run = fail


LONG = ProbationConfig(min_inferences=1000, seconds=600)


@pytest.fixture
def on_probation(voice: Any, run_agent: Callable[..., Any], simulator: Any, tmp_path: Path) -> Path:
    """State folder of a stopped device: version 1 is confirmed, version 2 serves on probation."""
    good, good_data = simulator.make_bundle(1)
    late, late_data = simulator.make_bundle(2)
    voice.release(good, good_data)
    voice.release(late, late_data)
    with run_agent() as device:
        voice.assign((good,), 1)
        voice.wait_model("committed", 1)
        device.agent.installer._watcher._config = LONG
        voice.assign((late,), 2)
        voice.wait_model("probation", 2, active_version=2)
    voice.forget()
    return tmp_path / "state"


def leave(state: Path, seconds: float) -> None:
    """Let so much time be left to confirm, as if the rest had passed while the device was off."""
    path = state / "installed.json"
    installed = json.loads(path.read_text())
    installed["models"]["tiny"]["confirm_by"] = time.time() + seconds
    del installed["digest"]
    path.write_text(json.dumps(installed))


def test_what_is_not_confirmed_in_time_reverts_by_itself(
    on_probation: Path, voice: Any, run_agent: Callable[..., Any], x: np.ndarray
) -> None:
    leave(on_probation, 1.0)
    with run_agent(probation=LONG) as device:
        assert device.infer(x)[0] in (1, 2)
        assert voice.wait_model("rolled_back", 2, active_version=1).error_code == "confirm-expired"
        assert device.infer(x)[0] == 1


def test_a_device_that_nobody_can_reach_does_not_confirm(
    on_probation: Path, run_agent: Callable[..., Any], mosquitto: Any, x: np.ndarray
) -> None:
    """It would not hear an abort either: it must be back at the last good version when the time is over."""
    mosquitto.stop()
    leave(on_probation, 1.5)
    with run_agent() as device:
        for _ in range(5):
            assert device.infer(x)[0] in (1, 2)
        deadline = time.monotonic() + 20
        while (model := device.agent.installer.state.models["tiny"]).state == "probation":
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        assert (model.state, model.error_code, model.active.version) == ("rolled_back", "confirm-expired", 1)
        assert device.infer(x)[0] == 1


def test_a_device_that_is_reached_confirms_what_a_restart_interrupted(
    on_probation: Path, voice: Any, run_agent: Callable[..., Any]
) -> None:
    with run_agent():
        voice.wait_model("committed", 2, active_version=2, previous_version=1)


def test_an_assignment_without_the_model_removes_it(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, x: np.ndarray, tmp_path: Path
) -> None:
    file, data = simulator.make_bundle(1)
    voice.release(file, data)
    with run_agent() as device:
        voice.assign((file,), 1)
        voice.wait_model("committed", 1)
        voice.assign((), 2)
        voice.wait("reported", lambda r: r.assignment_version == 2 and not r.models, "the removal")
        with pytest.raises(OSError):
            device.infer(x)
        # It is told first and cleared away then.
        deadline = time.monotonic() + 20
        while left := list((tmp_path / "state/store/bundles").iterdir()):
            assert time.monotonic() < deadline, left
            threading.Event().wait(0.05)


def test_two_models_are_installed_side_by_side(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, x: np.ndarray
) -> None:
    one, one_data = simulator.make_bundle(1)
    other, other_data = simulator.make_bundle(5, model="other")
    voice.release(one, one_data)
    voice.release(other, other_data)
    with run_agent() as device:
        voice.assign((one, other), 1)
        voice.wait(
            "reported", lambda r: [m.state for m in r.models] == ["committed", "committed"], "two committed models"
        )
        assert (device.infer(x)[0], device.infer(x, "other")[0]) == (1, 5)


def test_a_withdrawal_is_heard_even_when_the_timestamp_has_expired(
    voice: Any, run_agent: Callable[..., Any], simulator: Any
) -> None:
    """An expired approval bars a first installation, never a revert."""
    from datetime import UTC, datetime, timedelta

    bundles = [simulator.make_bundle(v) for v in (1, 2)]
    for file, data in bundles:
        voice.release(file, data)
    with run_agent():
        voice.assign((bundles[0][0],), 1)
        voice.wait_model("committed", 1)
        voice.assign((bundles[1][0],), 2)
        voice.wait_model("committed", 2)
        voice.repository.timestamp.signed.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
        voice.publish_metadata()
        voice.assign((bundles[0][0],), 3, days=-1)
        voice.wait_model("committed", 1, active_version=1)


def test_an_assignment_of_several_models_is_told_of_when_all_have_heard_of_it(
    voice: Any, run_agent: Callable[..., Any], simulator: Any
) -> None:
    """Found in a test: told of in between, an older failure of the same bundle looked like one of the new rollout."""
    first, second = (simulator.make_bundle(version, model="first") for version in (1, 2))
    bad = simulator.make_bundle(1, wrong_golden=True)
    for file, data in (first, second, bad):
        voice.release(file, data)
    with run_agent():
        voice.assign((first[0], bad[0]), 1)
        voice.wait_model("failed", 1)
        voice.forget()
        voice.assign((second[0], bad[0]), 2)
        report = voice.wait("reported", lambda r: r.assignment_version == 2, "assignment 2")
        states = {model.model: model.state for model in report.models}
        assert states.keys() == {"first", "tiny"} and states["tiny"] != "failed", states
        assert voice.wait_model("failed", 1).error_code == "self-test-golden", "it is tried anew, and fails anew"


def test_a_bundle_for_another_board_does_not_fit(voice: Any, run_agent: Callable[..., Any], simulator: Any) -> None:
    file, data = simulator.make_bundle(1, board="other-board")
    voice.release(file, data)
    with run_agent():
        voice.assign((file,), 1)
        assert voice.wait_model("failed", 1).error_code == "does-not-fit"


def test_a_file_that_is_no_model_fails_in_the_child(voice: Any, run_agent: Callable[..., Any], simulator: Any) -> None:
    file, data = simulator.make_bundle(1, model_bytes=b"this is not a model")
    voice.release(file, data)
    with run_agent():
        voice.assign((file,), 1)
        assert voice.wait_model("failed", 1).error_code == "model-file"


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (SelfTestConfig(nice=0, cpu_s=1), "self-test-crashed"),
        (SelfTestConfig(nice=0, timeout_s=1.0), "self-test-timeout"),
    ],
)
def test_a_model_that_never_ends_takes_the_child_down_and_not_the_agent(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, x: np.ndarray, limits: SelfTestConfig, code: str
) -> None:
    good, good_data = simulator.make_bundle(1)
    endless, endless_data = simulator.make_bundle(2, model_bytes=simulator.endless_model())
    voice.release(good, good_data)
    voice.release(endless, endless_data)
    with run_agent() as device:
        voice.assign((good,), 1)
        voice.wait_model("committed", 1)
    with run_agent(self_test=limits) as device:
        voice.assign((endless,), 2)
        assert voice.wait_model("failed", 2, active_version=1).error_code == code
        assert device.infer(x)[0] == 1


def test_a_model_that_needs_too_much_memory_is_named(voice: Any, run_agent: Callable[..., Any], simulator: Any) -> None:
    file, data = simulator.make_bundle(1)
    voice.release(file, data)
    with run_agent(self_test=SelfTestConfig(nice=0, memory_mib=8)):
        voice.assign((file,), 1)
        assert voice.wait_model("failed", 1).error_code in ("self-test-memory", "self-test-crashed", "engine-missing")


def test_a_budget_binds_on_the_real_board_only(
    voice: Any, enrol_here: Any, run_agent: Callable[..., Any], simulator: Any, mosquitto: Any, tmp_path: Path
) -> None:
    file, data = simulator.make_bundle(1, budget=Budget(memory_mib=1))
    voice.release(file, data)
    enrol_here(tmp_path / "state", mosquitto.port, voice.repository.root_bytes, "")
    with run_agent(board=simulator.BOARD):
        voice.assign((file,), 1)
        report = voice.wait_model("failed", 1)
        assert report.error_code == "self-test-memory" and "the budget is 1 MiB" in report.error
        assert not voice.wait("reported", lambda r: r.models, "a report").simulated


def test_events_are_sent_again_until_they_are_stored(voice: Any, run_agent: Callable[..., Any], simulator: Any) -> None:
    voice.acknowledge = False
    file, data = simulator.make_bundle(1)
    voice.release(file, data)
    with run_agent(resend_s=0.3) as device:
        voice.assign((file,), 1)
        voice.wait_model("committed", 1)
        event = voice.wait("event", lambda e: e.code == "committed", "the event")
        voice.forget()
        voice.wait("event", lambda e: (e.stream, e.seq) == (event.stream, event.seq), "the same event again")
        voice.acknowledge = True
        voice.wait("event", lambda e: e.seq == event.seq, "once more")
        deadline = time.monotonic() + 5
        while len(device.agent.outbox) and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        assert len(device.agent.outbox) == 0


def test_status_tells_what_serves_and_a_state_folder_has_one_agent(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, data = simulator.make_bundle(1)
    voice.release(file, data)
    with run_agent():
        voice.assign((file,), 1)
        voice.wait_model("committed", 1)
        assert main(["status", "--state", str(tmp_path / "state"), "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        with pytest.raises(StateError, match="another agent"), run_agent():
            pass
    assert shown["running"] and shown["online"] and shown["simulated"]
    assert shown["models"][0]["active_version"] == 1
    assert main(["status", "--state", str(tmp_path / "state")]) == 0
    assert "not running" in capsys.readouterr().out
