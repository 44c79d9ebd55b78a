"""The danger: parts that work alone, and a main job that does not: from the key ceremony to a fleet that learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load, save_file

pytestmark = pytest.mark.slow  # the default suite takes the same course in `test_secured_main_job.py`

AT_ONCE = ("--phase", "100")
PI, PC = "raspberry-pi-5", "x86-64"
DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits" / "digits.toml"
LEARNERS = {"porch": 90, "office": 30}
"""Training samples of each device."""


def local_samples(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A device's own training data: x (N, 4), y (N,)."""
    number = LEARNERS[name]
    rng = np.random.default_rng(number)
    y = rng.integers(0, 3, number)
    return (rng.normal(size=(number, 4)) + 2 * np.eye(3, 4)[y]).astype(np.float32), y


@pytest.fixture(scope="module")
def fleet(empty_fleet: Any) -> Iterator[Any]:
    """Two devices that stand in for different boards, running and online."""
    for name, board in (("porch", PI), ("office", PC)):
        device = empty_fleet.enrol(name, board)
        x, y = local_samples(name)
        save_file({"x": x, "y": y}, empty_fleet.folder / f"{name}.safetensors")
        empty_fleet.start_device(device, train_data=empty_fleet.folder / f"{name}.safetensors")
    empty_fleet.edgewise("device", "wait", *LEARNERS, "--timeout", 90)
    yield empty_fleet


def steps_of(rollout: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(step["kind"], step["device_id"]) for step in rollout["history"]]


def serve(fleet: Any, model: str) -> dict[str, int]:
    """What each device answers with."""
    return {device.name: device.serves(model) for device in fleet.devices}


def check_answers(fleet: Any, bundles: Any, model: str, version: int) -> None:
    """Every device answers with the version, and with the numbers of its own board's bundle."""
    x = bundles.samples(5)
    for device in fleet.devices:
        answered, logits = device.infer(model, x)
        assert answered == version, device.name
        np.testing.assert_allclose(logits, bundles.logits_of(model, version, device.board, x), atol=1e-4)


def test_devices_are_what_they_say_and_labelled_simulated(fleet: Any) -> None:
    found = {d["id"]: d for d in fleet.edgewise("device", "list", "--group", "rooms")["devices"]}
    assert {name: d["compatible"] for name, d in found.items()} == {"porch": [PI], "office": [PC]}
    assert all(d["online"] and d["simulated"] and d["channel"] == "lab" for d in found.values())


def test_a_canary_rollout_reaches_both_boards_each_with_its_own_bundle(fleet: Any, bundles: Any) -> None:
    fleet.publish("meter", 1)
    registered = fleet.edgewise("models", "meter", 1)["bundles"]
    assert {b["profile"]: b["role"] for b in registered} == {PI: "targets", PC: "targets"}
    rollout = fleet.roll_out("meter", 1)
    first, second = (d["device_id"] for d in rollout["devices"])
    assert {first, second} == set(LEARNERS)
    steps = steps_of(rollout)
    order = [("assign", first), ("outcome", first), ("start-phase", None), ("assign", second), ("outcome", second)]
    assert [s for s in steps if s in order][-5:] == order, steps
    assert steps[-1] == ("complete", None)
    check_answers(fleet, bundles, "meter", 1)
    for device in fleet.devices:
        assert httpx.get(f"{device.url}/v2/models/meter/ready", timeout=20).status_code == 200
        assert httpx.get(f"{device.url}/v2/models/meter", timeout=20).json()["versions"] == ["1"]
        assert device.serves("unheard-of") == 0


def test_an_upgrade_that_is_aborted_reverts_to_the_version_before(fleet: Any, bundles: Any) -> None:
    fleet.publish("valve", 1, 2)
    fleet.roll_out("valve", 1, *AT_ONCE)
    rollout = fleet.start_rollout("valve", 2, "--phase", "50:1:600", "--phase", "100")
    canary = fleet.canary(rollout)
    other = next(device for device in fleet.devices if device is not canary)
    fleet.wait_for("the canary commits", lambda: fleet.rollout(rollout)["counts"]["committed"] == 1)
    assert serve(fleet, "valve") == {canary.name: 2, other.name: 1}
    fleet.edgewise("rollout", "abort", rollout, "--reason", "second thoughts")
    fleet.wait_for("version 1 on the canary", lambda: canary.serves("valve") == 1)
    done = fleet.watch_rollout(rollout, expect=1)
    assert done["reason"] == "second thoughts" and done["counts"]["exposed"] == 1
    check_answers(fleet, bundles, "valve", 1)

    def reported() -> list[int]:
        return [m["active_version"] for m in fleet.get(f"/devices/{canary.name}")["models"] if m["model"] == "valve"]

    fleet.wait_for("the canary has reported it", lambda: reported() == [1])
    done = fleet.roll_out("valve", 2)
    assert {d["previous_version"] for d in done["devices"]} == {1}
    check_answers(fleet, bundles, "valve", 2)
    fleet.edgewise("rollout", "abort", done["id"])
    fleet.wait_for("version 1 everywhere", lambda: set(serve(fleet, "valve").values()) == {1})
    check_answers(fleet, bundles, "valve", 1)


def test_a_bad_release_stops_at_the_canary_and_a_good_one_follows_with_no_failed_request(
    fleet: Any, fleets: Any, bundles: Any
) -> None:
    fleet.publish("lamp", 1, 3)
    fleet.publish("lamp", 2, wrong_golden=True)
    fleet.roll_out("lamp", 1, *AT_ONCE)
    x = bundles.samples(1)
    with fleets.Requests(fleet.devices, "lamp", x) as requests:
        bad = fleet.watch_rollout(fleet.start_rollout("lamp", 2), expect=1)
        reported = fleet.wait_for("the canary's report", lambda: _reported(fleet, bad, "lamp"))
    assert bad["status"] == "aborted" and "1 of 1 devices failed" in bad["reason"]
    assert [d["error_code"] for d in bad["devices"]] == ["self-test-golden"]
    assert reported["active_version"] == 1
    _check_requests(fleet, bundles, requests, "lamp", x, {1})

    with fleets.Requests(fleet.devices, "lamp", x) as requests:
        fleet.roll_out("lamp", 3)
        fleet.wait_for("version 3 answers", lambda: set(serve(fleet, "lamp").values()) == {3})
        fleet.wait_for("all clients got it", lambda: all(a and a[-1][0] == 3 for a in requests.answered.values()))
    _check_requests(fleet, bundles, requests, "lamp", x, {1, 3})


def _reported(fleet: Any, rollout: dict[str, Any], model: str) -> dict[str, Any] | None:
    """What the canary says of the model, once it has gone back to a version that it was assigned before."""
    models = fleet.get(f"/devices/{rollout['devices'][0]['device_id']}")["models"]
    return next((m for m in models if m["model"] == model and m["state"] == "committed"), None)


def _check_requests(fleet: Any, bundles: Any, requests: Any, model: str, x: np.ndarray, versions: set[int]) -> None:
    """None failed; the versions never went back; and each answer was the one that its version gives."""
    assert requests.failed == []
    for device in fleet.devices:
        answers = requests.answered[device.name]
        assert len(answers) > 20
        order = [version for version, _ in answers]
        assert set(order) == versions and order == sorted(order), (device.name, sorted(set(order)))
        for version in versions:
            found = np.concatenate([logits for answered, logits in answers if answered == version])
            wanted = bundles.logits_of(model, version, device.board, x)
            np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), atol=1e-4)


def test_telemetry_drift_windows_and_events_arrive_and_nothing_is_counted_twice(fleet: Any, bundles: Any) -> None:
    fleet.publish("scale", 1)
    fleet.roll_out("scale", 1, *AT_ONCE)
    asked = {"porch": 37, "office": 11}
    for name, number in asked.items():
        for n in range(number):
            fleet.device(name).infer("scale", bundles.samples(4, seed=n))

    def counted(name: str) -> dict[str, int]:
        rows = fleet.get(f"/devices/{name}/telemetry", limit=1000)["telemetry"]
        assert all(row["simulated"] for row in rows)
        models = [m for row in rows for m in row["models"] if m["model"] == "scale"]
        assert all(0 < m["latency_p50_ms"] <= m["latency_max_ms"] for m in models if m["requests"])
        return {key: sum(m[key] for m in models) for key in ("requests", "errors")}

    def rows(name: str) -> int:
        return len(fleet.get(f"/devices/{name}/telemetry", limit=1000)["telemetry"])

    for name, number in asked.items():
        fleet.wait_for(f"{name}'s counters", partial(_at_least, number, lambda n=name: counted(n)["requests"]))
        # Two more messages: one that is delivered again must not be counted again.
        fleet.wait_for(f"two more messages of {name}", partial(_at_least, rows(name) + 2, partial(rows, name)))
        assert counted(name) == {"requests": number, "errors": 0}

    def scored(name: str) -> list[int]:
        found = fleet.get("/drift", model="scale", version=1, device=name)["windows"]
        return [w["samples"] for w in found if w["features"] and w["simulated"]]

    # 37 requests of 4 samples fill three windows of 40; 11 fill one.
    for name, number in (("porch", 3), ("office", 1)):
        fleet.wait_for(f"drift windows of {name}", partial(_at_least, number, lambda n=name: len(scored(n))))
        assert scored(name) == [40] * number

    def alerted() -> set[str]:
        found = fleet.get("/alerts", open="true")["alerts"]
        return {a["device_id"] for a in found if (a["kind"], a["model"], a["version"]) == ("drift", "scale", 1)}

    assert not alerted()
    for _ in range(3):
        fleet.device("porch").infer("scale", bundles.samples(40) + 5)
        fleet.device("office").infer("scale", bundles.samples(40))
    fleet.wait_for("a drift alert", alerted)
    fleet.wait_for("office's windows", partial(_at_least, 4, lambda: len(scored("office"))))
    assert alerted() == {"porch"}

    events = fleet.get("/devices/porch/events", limit=200)["events"]
    states = [e["data"]["state"] for e in reversed(events) if e["data"].get("model") == "scale"]
    assert states == ["downloading", "verifying", "staged", "self_test", "probation", "committed"]


def _at_least(number: int, look: Callable[[], int]) -> bool:
    return look() >= number


def test_a_federated_round_gives_what_its_devices_samples_give_together(
    fleet: Any, bundles: Any, training: Any
) -> None:
    rate = 0.5
    start = {
        "p.w": np.random.default_rng(5).normal(size=(4, 3)).astype(np.float32),
        "p.b": np.zeros(3, np.float32),
        "b.steps": np.zeros(1, np.int64),
    }
    folder = fleet.folder / "training"
    bundle = bundles.training_bundle(folder, "pulse", training.softmax_step(), training.SPEC, start)
    fleet.release("pulse-training", [bundle])
    token = fleet.edgewise("token", "create", "signer", "--role", "worker")["token"]
    worker = ("worker", "run", "--keys", fleet.keys / "worker", "--config", DIGITS, "--run", folder, "--poll", 0.1)
    fleet.start_other("edgewise", *worker, token=token)
    # One epoch in one batch: a device takes one gradient step, and the round is one step over all samples.
    options = ("--rounds", 1, "--min-clients", 2, "--epochs", 1, "--batch-size", 128, "--lr", rate)
    where = ("--channel", "lab", "--group", "rooms", "--profile", PI)
    made = fleet.edgewise("federate", "start", "pulse", *where, *options)

    def closed() -> dict[str, Any] | None:
        found = fleet.get(f"/federations/{made['id']}")
        assert not [r for r in found["rounds"] if r["state"] == "failed"], found
        return next((r for r in found["rounds"] if r["state"] == "closed"), None)

    done = fleet.wait_for("the round closes", closed, 120)
    assert {c["device_id"]: c["samples"] for c in done["clients"]} == LEARNERS
    assert all(c["state"] == "aggregated" and c["simulated"] for c in done["clients"])

    answer = httpx.get(
        f"{fleet.env['EDGEWISE_SERVER']}/api/v1/federations/{made['id']}/weights",
        params={"round": 1},
        headers={"Authorization": f"Bearer {token}"},
        timeout=20,
    )
    answer.raise_for_status()
    found = load(answer.content)
    x, y = (np.concatenate(parts) for parts in zip(*(local_samples(name) for name in LEARNERS), strict=True))
    step = one_step(start, x, y, rate)
    np.testing.assert_allclose(found["p.w"], step["p.w"], atol=1e-5)
    np.testing.assert_allclose(found["p.b"], step["p.b"], atol=1e-5)
    assert found["b.steps"].tolist() == [0], "counters are kept, never averaged"
    # The worker signs offers of any model of its channel, but promotes only the model that it can judge.
    ended = fleet.wait_for(
        "the promotion's end", lambda: (f := fleet.get(f"/federations/{made['id']}"))["finished_at"] and f, 90
    )
    assert ended["status"] == "failed" and "configured for the model 'digits'" in ended["reason"]
    assert "pulse" not in {found["model"] for found in fleet.get("/models")["items"]}


def one_step(start: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray, rate: float) -> dict[str, np.ndarray]:
    """One step of gradient descent on the mean cross-entropy of softmax regression."""
    z = x @ start["p.w"] + start["p.b"]
    shares = np.exp(z - z.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    pull = (shares - np.eye(3)[y]) / len(x)
    return {"p.w": start["p.w"] - rate * x.T @ pull, "p.b": start["p.b"] - rate * pull.sum(0)}
