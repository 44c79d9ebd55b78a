"""Danger: the CLI and the console are told something else than what REST promises, or a viewer may act."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest
from edgewise_protocol.messages import Event, ModelTelemetry, Telemetry, encode
from edgewise_protocol.metadata import encode_metadata
from edgewise_protocol.rounds import OfferBody, build_offer
from edgewise_protocol.targets import SignedFile
from edgewise_server.services import ingest
from edgewise_server.services.ingest import StreamedItem
from safetensors.numpy import load


@pytest.fixture
def working(api: Any, fleet: Any, kit: Any) -> Any:
    """A running API over a fleet of two devices with one version."""
    fleet.publish(kit.make_bundle())
    fleet.add("d0", "d1")
    fleet.api = api
    return fleet


BODY = {"model": "digits", "version": 1, "group": "all", "phases": [{"percent": 50, "soak_s": 1.5}, {"percent": 100}]}


def test_a_rollout_over_rest(working: Any) -> None:
    api = working.api
    made = api.operator.post("/rollouts", json=BODY)
    assert made.status_code == 201, made.text
    rollout = made.json()
    assert rollout["status"] == "running" and rollout["gates"]["on_breach"] == "abort"
    assert rollout["phases"][0] == {"percent": 50, "min_devices": 1, "soak_s": 1.5}
    working.tick()
    found = api.viewer.get(f"/rollouts/{rollout['id']}").json()
    assert found["counts"] == {
        "cohort": 2,
        "exposed": 1,
        "pending": 1,
        "committed": 0,
        "failed": 0,
        "reverted": 0,
        "offline": 0,
        "unfit": 0,
        "barred": 0,
    }
    assert [d["kind"] for d in found["history"]] == ["create", "start-phase", "assign"]
    assert datetime.fromisoformat(found["created_at"]).tzinfo is not None
    paused = api.operator.post(f"/rollouts/{rollout['id']}/pause", json={"reason": "lunch"}).json()
    assert (paused["status"], paused["reason"]) == ("paused", "lunch")
    again = api.operator.post(f"/rollouts/{rollout['id']}/pause")
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert api.operator.post(f"/rollouts/{rollout['id']}/resume").json()["status"] == "running"
    assert api.operator.post(f"/rollouts/{rollout['id']}/abort", json={}).json()["status"] == "aborted"
    working.tick()
    (device,) = api.viewer.get(f"/rollouts/{rollout['id']}").json()["devices"]
    assert (device["state"], device["previous_version"]) == ("reverted", None)
    listed = api.viewer.get("/rollouts", params={"model": "digits", "status": "aborted"}).json()["rollouts"]
    assert [r["id"] for r in listed] == [rollout["id"]]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"version": 9}, 404),
        ({"group": "nobody"}, 404),
        ({"phases": []}, 422),
        ({"phases": [{"percent": 50}, {"percent": 10}]}, 422),
        ({"gates": {"max_failed_ratio": 2}}, 422),
        ({"surprise": 1}, 422),
    ],
)
def test_rollouts_that_make_no_sense_are_refused(working: Any, change: dict[str, Any], status: int) -> None:
    answer = working.api.operator.post("/rollouts", json=BODY | change)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_roles_are_kept_apart(working: Any) -> None:
    api = working.api
    assert api.viewer.post("/rollouts", json=BODY).status_code == 403
    assert api.worker.post("/rollouts", json=BODY).status_code == 403
    assert api.nobody.get("/rollouts").status_code == 401
    assert api.operator.post("/jobs/claim", json={"worker": "w", "kinds": ["promote"]}).status_code == 403
    assert api.viewer.post("/alerts/x/ack").status_code == 403


def test_telemetry_and_events_over_rest(working: Any) -> None:
    event = Event(stream="s", seq=1, at=5.0, kind="deployment", code="bundle-tampered", text="refused", data={"n": 1})
    telemetry = Telemetry(
        stream="s",
        seq=2,
        at=6.0,
        window_s=10,
        models=(ModelTelemetry(model="digits", version=1, requests=3),),
        rss_mib=80.5,
        outbox_dropped=2,
        simulated=True,
    )
    items = [
        StreamedItem("d0", "event", event, encode(event)),
        StreamedItem("d0", "telemetry", telemetry, encode(telemetry)),
    ]
    with working.context.database.session() as session:
        ingest.store(session, items, working.now)
    viewer = working.api.viewer
    (found,) = viewer.get("/devices/d0/events", params={"limit": 5}).json()["events"]
    assert (found["code"], found["data"], found["at"]) == ("bundle-tampered", {"n": 1}, "1970-01-01T00:00:05Z")
    (window,) = viewer.get("/devices/d0/telemetry").json()["telemetry"]
    assert (window["rss_mib"], window["outbox_dropped"], window["simulated"]) == (80.5, 2, True)
    assert window["models"][0]["requests"] == 3 and window["temperature_c"] is None
    assert viewer.get("/devices/nobody/events").status_code == 404
    assert viewer.get("/drift", params={"device": "d0"}).json() == {"windows": [], "merged": None}
    assert viewer.get("/drift", params={"group": "all"}).status_code == 422
    merged = viewer.get("/drift", params={"group": "all", "model": "digits", "version": 1}).json()
    assert merged == {"windows": [], "merged": []}
    assert viewer.get("/alerts", params={"open": "true"}).json() == {"alerts": []}


def test_a_federation_and_its_jobs_over_rest(working: Any, kit: Any) -> None:
    api, training = working.api, kit.make_training_bundle()
    working.publish(training, role="rounds")
    without_rate = {"name": "f", "model": "digits", "channel": "lab", "training_path": "x", "rounds": 1}
    refused = api.operator.post("/federations", json=without_rate)
    assert refused.status_code == 422 and "lr" in refused.json()["detail"]
    made = api.operator.post(
        "/federations",
        json={
            "name": "rotated",
            "model": "digits",
            "channel": "lab",
            "training_path": training.file.path,
            "base_version": 1,
            "rounds": 1,
            "lr": 0.03,
            "rollout": {"phases": [{"percent": 100}]},
        },
    )
    assert made.status_code == 201, made.text
    federation = made.json()["id"]
    working.tick()
    claim = {"worker": "w1", "kinds": ["sign-offer", "promote"]}
    job = api.worker.post("/jobs/claim", json=claim).json()
    assert (job["kind"], job["state"], job["attempts"]) == ("sign-offer", "claimed", 1)
    assert api.worker.post("/jobs/claim", json=claim).status_code == 204
    assert api.worker.post(f"/jobs/{job['id']}/heartbeat", json={"worker": "w1"}).status_code == 200
    assert api.worker.post(f"/jobs/{job['id']}/finish", json={"worker": "w2"}).status_code == 409
    payload = job["payload"]
    offer = build_offer(
        msgspec.convert(payload["body"], OfferBody),
        msgspec.convert(payload["training"], SignedFile),
        msgspec.convert(payload["weights"], SignedFile),
        expires=datetime.fromtimestamp(payload["expires_at"], UTC).replace(microsecond=0),
    )
    path = f"/federations/{federation}/rounds/1/offer"
    assert api.worker.put(path, content=b"{}").status_code == 422
    unsigned = api.worker.put(path, content=encode_metadata(offer))
    assert (unsigned.status_code, unsigned.json()["code"]) == (422, "round-offer-unsigned")
    offer.sign(working.ceremony.signer_of("offers"))
    signed = encode_metadata(offer)
    assert api.worker.put(path, content=signed).json()["state"] == "offered"
    assert api.worker.put(path, content=signed).status_code == 200
    done = api.worker.post(f"/jobs/{job['id']}/finish", json={"worker": "w1", "result": {}})
    assert done.json()["state"] == "finished"
    working.tick()
    found = api.viewer.get(f"/federations/{federation}").json()
    assert (found["status"], found["round"], found["settings"]["lr"]) == ("running", 1, 0.03)
    assert found["rounds"][0]["state"] == "collecting" and found["rounds"][0]["clients"] == []
    weights = api.worker.get(f"/federations/{federation}/weights", params={"round": 0})
    assert hashlib.sha256(weights.content).hexdigest() == found["weights_sha256"]
    np.testing.assert_array_equal(load(weights.content)["p.w"], np.zeros(3))
    assert api.worker.get(f"/federations/{federation}/weights", params={"round": 1}).status_code == 404
    assert api.operator.post(f"/federations/{federation}/stop").json()["status"] == "stopped"
    assert [f["id"] for f in api.viewer.get("/federations").json()["federations"]] == [federation]
    assert api.viewer.get("/jobs", params={"kind": "sign-offer"}).json()["jobs"][0]["id"] == job["id"]
