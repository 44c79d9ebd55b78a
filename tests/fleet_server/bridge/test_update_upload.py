"""Danger: updates flood the server, arrive damaged, or come in after the round has closed."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
from edgewise_protocol import topics
from edgewise_protocol.bounds import CHUNK_BYTES
from edgewise_protocol.chunks import chunk_count
from edgewise_protocol.messages import Ack, UpdateReady
from edgewise_protocol.rounds import OfferBody
from edgewise_protocol.targets import SignedFile, TargetCustom
from edgewise_server.federation.facts import FederationSettings
from edgewise_server.models.federation import Federation, Round, RoundClient
from edgewise_server.services import blobs
from edgewise_server.services.updates import WINDOW
from edgewise_server.uploads.store import UploadStore
from msgspec import to_builtins
from safetensors.numpy import save
from sqlmodel import select

ROUND = "fed-1-r1"
VALUES = 1_500_000  # 46 chunks


def weights(seed: int, values: int = VALUES, name: str = "p.w") -> bytes:
    return bytes(save({name: np.random.default_rng(seed).normal(size=values).astype(np.float32)}))


def open_round(bridged: SimpleNamespace, *, max_uploads: int = 2, state: str = "collecting") -> None:
    with bridged.context.database.session() as session:
        start = blobs.add(session, bridged.context.blobs, weights(0))
        file = SignedFile(
            path=f"rounds/lab/digits/{ROUND}.safetensors",
            length=start.size,
            sha256=start.sha256,
            custom=TargetCustom(chunk_index=start.chunk_index, kind="weights", model="digits"),
        )
        body = OfferBody(round_id=ROUND, federation="fed-1", number=1, channel="lab", model="digits")
        settings = FederationSettings(rounds=1, max_uploads=max_uploads)
        session.add(
            Federation(
                id="fed-1",
                name="f",
                model="digits",
                channel="lab",
                training_path="rounds/lab/digits/1.ewb",
                rounds_wanted=1,
                settings={name: getattr(settings, name) for name in settings.__slots__},
                status="running",
                created_at=0.0,
            )
        )
        session.flush()
        session.add(
            Round(
                id=ROUND,
                federation_id="fed-1",
                number=1,
                state=state,
                body=to_builtins(body),
                training={},
                weights=to_builtins(file),
                started_at=0.0,
            )
        )


def announce(phone: Any, data: bytes, **values: Any) -> None:
    message = UpdateReady(
        round_id=ROUND,
        length=values.pop("length", len(data)),
        sha256=values.pop("sha256", hashlib.sha256(data).hexdigest()),
        samples=10,
        metrics={"loss_after": 0.5},
    )
    phone.send("update-ready", message)


def newest(phone: Any) -> Ack | None:
    acks = [ack for ack in phone.acks if ack.round_id == ROUND]
    return acks[-1] if acks else None


def upload(phone: Any, data: bytes) -> int:
    """Send as credits allow; returns the most chunks that were under way at a time."""
    sent, most = 0, 0
    while not (ack := phone.wait(lambda: newest(phone), "an ack")).complete:
        assert not ack.error, ack
        allowed = min(ack.chunks_through + ack.credits, chunk_count(len(data)))
        for n in range(sent, allowed):
            phone.send_raw(topics.update(phone.device_id, ROUND, n), data[n * CHUNK_BYTES : (n + 1) * CHUNK_BYTES])
        most = max(most, allowed - ack.chunks_through)
        sent = max(sent, allowed)
        seen = len(phone.acks)
        if not phone.acks[-1].complete and newest(phone) == ack:
            phone.wait(lambda seen=seen: len(phone.acks) > seen, "the next ack")
    return most


def client(bridged: SimpleNamespace, device_id: str) -> tuple[str, int]:
    with bridged.context.database.session(read_only=True) as session:
        found = session.exec(select(RoundClient).where(RoundClient.device_id == device_id)).one()
        return found.state, found.chunks_through


def test_an_update_is_uploaded_with_credits_and_stored_whole(bridged: SimpleNamespace) -> None:
    bridged.add_device("d1")
    open_round(bridged)
    bridged.bridge()
    phone = bridged.phone("d1")
    data = weights(1)
    announce(phone, data)
    assert upload(phone, data) <= WINDOW
    assert client(bridged, "d1") == ("stored", chunk_count(len(data)))
    store = UploadStore(bridged.context.settings.state / "uploads")
    assert store.path(ROUND, "d1").read_bytes() == data
    announce(phone, data)  # repeated, as after a lost ack
    phone.wait(lambda: newest(phone) and newest(phone).complete, "the same answer")


def test_more_clients_than_places_wait_for_their_turn(bridged: SimpleNamespace) -> None:
    open_round(bridged, max_uploads=1)
    bridged.bridge()
    phones, datas = [], []
    for n in range(3):
        bridged.add_device(f"d{n}")
        phones.append(bridged.phone(f"d{n}"))
        datas.append(weights(n + 1))
        announce(phones[n], datas[n])
        phones[n].wait(lambda n=n: newest(phones[n]), "an answer")
    assert [newest(phone).credits for phone in phones] == [WINDOW, 0, 0]
    phones[1].send_raw(topics.update("d1", ROUND, 0), datas[1][:CHUNK_BYTES])  # without a credit
    for n in range(3):
        phones[n].wait(lambda n=n: newest(phones[n]).credits or newest(phones[n]).complete, "its turn")
        upload(phones[n], datas[n])
    assert {client(bridged, f"d{n}")[0] for n in range(3)} == {"stored"}


def test_a_lost_connection_resumes_where_it_was(bridged: SimpleNamespace) -> None:
    bridged.add_device("d1")
    open_round(bridged)
    first = bridged.bridge()
    data = weights(1)
    phone = bridged.phone("d1")
    announce(phone, data)
    phone.wait(lambda: newest(phone), "credits")
    for n in range(5):
        phone.send_raw(topics.update("d1", ROUND, n), data[n * CHUNK_BYTES : (n + 1) * CHUNK_BYTES])
    phone.wait(lambda: newest(phone).chunks_through == 5, "five chunks")
    first.stop()
    phone.close()
    bridged.bridge()
    again = bridged.phone("d1")
    announce(again, data)
    assert again.wait(lambda: newest(again), "an answer").chunks_through == 5
    again.send_raw(topics.update("d1", ROUND, 9), data[9 * CHUNK_BYTES : 10 * CHUNK_BYTES])  # out of order: dropped
    upload(again, data)
    assert client(bridged, "d1")[0] == "stored"


def test_a_late_update_is_refused_with_a_reason(bridged: SimpleNamespace) -> None:
    bridged.add_device("d1")
    open_round(bridged, state="aggregating")
    bridged.bridge()
    phone = bridged.phone("d1")
    announce(phone, weights(1))
    assert phone.wait(lambda: newest(phone), "an answer").error.startswith("round-closed")


def test_bad_updates_are_refused_with_a_reason(bridged: SimpleNamespace) -> None:
    for n in range(4):
        bridged.add_device(f"d{n}", channel="lab" if n != 3 else "other")
    open_round(bridged, max_uploads=8)
    bridged.bridge()
    data = weights(1)
    cases = [
        ("d0", data, {"sha256": "0" * 64}, "update-damaged"),
        ("d1", weights(1, name="p.other"), {}, "update-refused"),
        ("d2", data, {"length": len(data) * 2}, "update-too-large"),
        ("d3", data, {}, "round-not-asked"),
    ]
    for device_id, payload, values, code in cases:
        phone = bridged.phone(device_id)
        announce(phone, payload, **values)
        answer = phone.wait(lambda phone=phone: newest(phone), "an answer")
        if not answer.error:
            for n in range(chunk_count(len(payload))):
                chunk = payload[n * CHUNK_BYTES : (n + 1) * CHUNK_BYTES]
                phone.send_raw(topics.update(device_id, ROUND, n), chunk)
                if n % WINDOW == WINDOW - 1:
                    phone.wait(lambda n=n, phone=phone: newest(phone).chunks_through > n, "the window")
            answer = phone.wait(lambda phone=phone: newest(phone).error and newest(phone), "a refusal")
        assert answer.error.startswith(code), answer
    store = UploadStore(bridged.context.settings.state / "uploads")
    assert not any(store.path(ROUND, f"d{n}").exists() for n in range(4))


def test_a_broker_that_loses_everything_costs_no_chunk_that_was_stored(bridged: SimpleNamespace) -> None:
    """Credits and chunks under way are gone; the client asks again, as its watch does, and goes on where it was."""
    bridged.add_device("d1")
    open_round(bridged)
    bridged.bridge()
    data = weights(1)
    phone = bridged.phone("d1")
    announce(phone, data)
    phone.wait(lambda: newest(phone), "credits")
    for n in range(3):
        phone.send_raw(topics.update("d1", ROUND, n), data[n * CHUNK_BYTES : (n + 1) * CHUNK_BYTES])
    phone.wait(lambda: newest(phone).chunks_through == 3, "three chunks")
    bridged.broker.stop()
    bridged.broker.start()
    again = bridged.phone("d1")

    def answered() -> bool:
        announce(again, data)
        return any(ack.round_id == ROUND for ack in again.acks)

    bridged.wait_for(answered, "the bridge to be back")
    assert newest(again).chunks_through == 3
    upload(again, data)
    assert client(bridged, "d1") == ("stored", chunk_count(len(data)))
