"""Danger: a round runs without a verified offer, mixes in late updates, or its result is lost or computed twice."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest
from edgewise_protocol.bounds import CHUNK_BYTES
from edgewise_protocol.chunks import chunk_count
from edgewise_protocol.errors import OfferError
from edgewise_protocol.messages import UpdateReady
from edgewise_protocol.metadata import encode_metadata
from edgewise_protocol.rounds import OfferBody, build_offer
from edgewise_protocol.targets import SignedFile
from edgewise_server.errors import ConflictError, InvalidError, NotFoundError
from edgewise_server.models.devices import Device
from edgewise_server.orchestrator.service import Orchestrator
from edgewise_server.services import federations, jobs, updates
from edgewise_server.services.updates import ChunkItem
from safetensors.numpy import load, save

SETTINGS = {"rounds": 2, "min_clients": 2, "round_timeout_s": 100, "straggler_s": 10, "epochs": 3, "mu": 0.1}
ROLLOUT = {"phases": [{"percent": 100}], "gates": {}}


@pytest.fixture
def federated(fleet: Any, kit: Any) -> Any:
    """Three devices on version 1, and a trusted training bundle."""
    fleet.publish(kit.make_bundle(), kit.make_bundle(profile="x86-64"))
    training = kit.make_training_bundle()
    fleet.publish(training, role="rounds")
    fleet.training = training.file
    fleet.add("d0", "d1", "d2")
    return fleet


def create(fleet: Any, **values: Any) -> str:
    request = federations.FederationRequest(
        **(
            {
                "name": "rotated",
                "model": "digits",
                "channel": "lab",
                "training_path": fleet.training.path,
                "base_version": 1,
                "settings": SETTINGS,
                "rollout": ROLLOUT,
            }
            | values
        )
    )
    with fleet.context.database.session() as session:
        return federations.create(session, fleet.context, request, "test", fleet.now).id


def view(fleet: Any, federation_id: str) -> Any:
    with fleet.context.database.session(read_only=True) as session:
        found = federations.get(session, federation_id)
        rounds = federations.rounds_of(session, federation_id)
        return {
            "status": found.status,
            "reason": found.reason,
            "weights": found.weights_sha256,
            "rollout": found.rollout_id,
            "version": found.promoted_version,
            "rounds": [(r.number, r.state) for r in rounds],
            "metrics": [dict(r.metrics) for r in rounds],
            "clients": [{c.device_id: c.state for c in federations.clients_of(session, r.id)} for r in rounds],
        }


def sign(fleet: Any, federation_id: str, *, signer: Any = None, lr: float | None = None) -> Any:
    """What the worker does with a sign-offer job."""
    with fleet.context.database.session() as session:
        job = jobs.claim(session, "worker", ["sign-offer"], fleet.now)
        assert job is not None
        payload, job_id = job.payload, job.id
    body = msgspec.convert(payload["body"], OfferBody)
    if lr is not None:
        body = msgspec.structs.replace(body, lr=lr)
    offer = build_offer(
        body,
        msgspec.convert(payload["training"], SignedFile),
        msgspec.convert(payload["weights"], SignedFile),
        expires=datetime.fromtimestamp(payload["expires_at"], UTC).replace(microsecond=0),
    )
    offer.sign(signer or fleet.ceremony.signer_of("offers"))
    with fleet.context.database.session() as session:
        federations.take_offer(
            session, fleet.context, federation_id, payload["number"], encode_metadata(offer), fleet.now
        )
        jobs.finish(session, job_id, "worker", {}, fleet.now)
    return payload


def send(fleet: Any, device_id: str, round_id: str, values: list[float], samples: int = 10) -> str:
    """A device's whole upload; returns the last answer's error, or "complete"."""
    data = save({"p.w": np.array(values, np.float32)})
    store = fleet.orchestrator._uploads
    ready = UpdateReady(
        round_id=round_id,
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        samples=samples,
        metrics={"loss_before": 2.0, "loss_after": 1.0},
    )
    with fleet.context.database.session() as session:
        device = session.get(Device, device_id)
        answers = updates.announce(session, device, ready, fleet.now)
        if not any(ack.error or ack.complete for _, ack in answers):
            chunks = [
                ChunkItem(device_id, round_id, n, data[n * CHUNK_BYTES : (n + 1) * CHUNK_BYTES])
                for n in range(chunk_count(len(data)))
            ]
            answers = updates.receive(session, fleet.context.blobs, store, chunks, fleet.now)
    ack = answers[0][1]
    return "complete" if ack.complete else ack.error


def test_rounds_average_promote_and_roll_out(federated: Any, kit: Any) -> None:
    fleet = federated
    federation = create(fleet)
    expected = np.zeros(3)
    for number in (1, 2):
        fleet.tick()
        assert view(fleet, federation)["rounds"][-1] == (number, "draft")
        payload = sign(fleet, federation)
        assert payload["body"]["epochs"] == 3 and payload["body"]["mu"] == 0.1
        fleet.tick()
        assert view(fleet, federation)["rounds"][-1] == (number, "collecting")
        order = kit.outgoing_topics(fleet.context)
        offered = order.index(f"round/{payload['round_id']}")
        for file in (payload["training"], payload["weights"]):
            assert order.index(f"blob/{file['sha256']}/0") < offered
            assert order.index(f"blob/{file['custom']['chunk_index']}/0") < offered
        for n, device in enumerate(["d0", "d1", "d2"]):
            values = [float(number + n), 1.0, -1.0]
            assert send(fleet, device, payload["round_id"], values, samples=n + 1) == "complete"
        expected = np.array([(number * 1 + (number + 1) * 2 + (number + 2) * 3) / 6, 1.0, -1.0])
        fleet.tick()
        assert view(fleet, federation)["rounds"][number - 1] == (number, "closed")
        assert f"round/{payload['round_id']}" not in kit.outgoing_topics(fleet.context)
        assert send(fleet, "d0", payload["round_id"], [0, 0, 0]) == "complete"  # it was taken already
    found = view(fleet, federation)
    with fleet.context.blobs.open(found["weights"]) as file:
        np.testing.assert_allclose(load(file.read())["p.w"], expected, atol=1e-6)
    metrics = found["metrics"][0]
    assert (metrics["clients"], metrics["samples"], metrics["loss_after"], metrics["refused"]) == (3, 6, 1.0, 0)
    assert not any((fleet.context.settings.state / "uploads").iterdir())

    assert found["status"] == "promoting"
    with fleet.context.database.session() as session:
        job = jobs.claim(session, "worker", ["promote"], fleet.now)
        assert job is not None
        asked = dict(job.payload)
        assert asked["weights_sha256"] == found["weights"] and asked["next_version"] == 2
        assert asked["profiles"] == ["raspberry-pi-4-64", "x86-64"]
        job_id = job.id
    fleet.publish(kit.make_bundle(version=2), role="auto/lab")
    with fleet.context.database.session() as session:
        jobs.finish(session, job_id, "worker", {"version": 2, "passed": True, "report": {}}, fleet.now)
    fleet.tick()
    found = view(fleet, federation)
    assert (found["status"], found["version"]) == ("finished", 2)
    fleet.until(lambda: fleet.rollout(found["rollout"]).status == "completed")
    assert set(fleet.versions().values()) == {2}


def test_an_offer_must_be_signed_by_rounds_and_be_what_was_asked(federated: Any) -> None:
    federation = create(federated)
    federated.tick()
    with pytest.raises(OfferError, match="not signed"):
        sign(federated, federation, signer=federated.ceremony.signer_of("auto/lab"))
    with federated.context.database.session() as session:
        assert jobs.requeue_silent(session, federated.now + 100) == 1
    with pytest.raises(OfferError, match="not the one"):
        sign(federated, federation, lr=1.0)
    assert view(federated, federation)["rounds"] == [(1, "draft")]


def test_too_few_clients_fail_the_round_and_twice_the_federation(federated: Any, kit: Any) -> None:
    federation = create(federated)
    for number in (1, 2):
        federated.tick()
        payload = sign(federated, federation)
        federated.tick()
        send(federated, "d0", payload["round_id"], [1, 2, 3])
        federated.tick(101)
        federated.tick()
        assert (number, "failed") in view(federated, federation)["rounds"]
        assert send(federated, "d1", payload["round_id"], [1, 2, 3]).startswith("round-closed")
        assert f"round/{payload['round_id']}" not in kit.outgoing_topics(federated.context)
    federated.tick()
    assert view(federated, federation)["status"] == "failed"
    assert "2 rounds failed" in view(federated, federation)["reason"]


def test_a_poisoned_update_is_left_out_and_named(federated: Any) -> None:
    federation = create(federated, settings=SETTINGS | {"rounds": 1})
    federated.tick()
    payload = sign(federated, federation)
    federated.tick()
    send(federated, "d0", payload["round_id"], [1, 1, 1])
    send(federated, "d1", payload["round_id"], [float("nan"), 1, 1], samples=1000)
    send(federated, "d2", payload["round_id"], [3, 3, 3])
    federated.tick()
    found = view(federated, federation)
    assert found["clients"][0] == {"d0": "aggregated", "d1": "refused", "d2": "aggregated"}
    assert found["metrics"][0]["refused"] == 1
    with federated.context.blobs.open(found["weights"]) as file:
        np.testing.assert_allclose(load(file.read())["p.w"], [2, 2, 2])


def test_killed_over_the_aggregation_another_process_does_it(federated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise_server.orchestrator import federations as steps

    federation = create(federated, settings=SETTINGS | {"rounds": 1})
    federated.tick()
    payload = sign(federated, federation)
    federated.tick()
    for device in ("d0", "d1", "d2"):
        send(federated, device, payload["round_id"], [1, 2, 3])

    def die(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(steps, "aggregate", die)
        with pytest.raises(KeyboardInterrupt):
            federated.orchestrator.tick(federated.now)
    assert view(federated, federation)["rounds"] == [(1, "aggregating")]
    assert send(federated, "d0", payload["round_id"], [9, 9, 9]) == "complete"  # stored before, not replaced
    federated.now += federated.context.settings.lease_s
    Orchestrator(federated.context).tick(federated.now)
    assert view(federated, federation)["rounds"] == [(1, "closed")]


def test_a_gate_that_says_no_ends_without_a_rollout(federated: Any) -> None:
    federation = create(federated, settings=SETTINGS | {"rounds": 1, "min_clients": 1})
    federated.tick()
    payload = sign(federated, federation)
    federated.tick()
    send(federated, "d0", payload["round_id"], [1, 2, 3])
    federated.tick(11)
    federated.tick()
    with federated.context.database.session() as session:
        job = jobs.claim(session, "worker", ["promote"], federated.now)
        assert job is not None
        jobs.finish(session, job.id, "worker", {"passed": False}, federated.now)
    federated.tick()
    found = view(federated, federation)
    assert (found["status"], found["rollout"], found["version"]) == ("finished", None, None)


def test_stopping_gives_an_open_round_up(federated: Any, kit: Any) -> None:
    federation = create(federated)
    federated.tick()
    payload = sign(federated, federation)
    federated.tick()
    with federated.context.database.session() as session:
        federations.stop(session, federation, "ann", federated.now)
    assert f"round/{payload['round_id']}" not in kit.outgoing_topics(federated.context)
    federated.tick()
    assert view(federated, federation)["rounds"] == [(1, "failed")]
    with federated.context.database.session() as session, pytest.raises(ConflictError):
        federations.stop(session, federation, "ann", federated.now)


def test_requests_that_cannot_work_are_refused(federated: Any, kit: Any) -> None:
    with pytest.raises(NotFoundError):
        create(federated, training_path="rounds/lab/digits/9.ewb")
    with pytest.raises(InvalidError):
        create(federated, training_path=kit.make_bundle().file.path)
    with pytest.raises(InvalidError):
        create(federated, settings=SETTINGS | {"strategy": "magic"})
    with pytest.raises(InvalidError):
        create(federated, settings=SETTINGS | {"rounds": 0})
    with pytest.raises(NotFoundError):
        create(federated, group="nobody")
    with pytest.raises(NotFoundError):
        create(federated, base_version=7)
    with pytest.raises(InvalidError, match="base_version"):
        create(federated, base_version=None)
