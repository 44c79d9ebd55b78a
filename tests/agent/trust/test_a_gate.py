"""Guards against metadata, offers and files that reach the device by another way than the fleet's signatures.

The federated client's door (offers, plain files), root rotation, and the clock, through a real agent.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from edgewise_agent.errors import MetadataUnavailableError
from edgewise_protocol import topics
from edgewise_protocol.errors import BundleDigestError, ChunkError, OfferError
from edgewise_protocol.metadata import encode_metadata
from edgewise_protocol.rounds import OfferBody, build_offer
from edgewise_protocol.targets import SignedFile, TargetCustom
from securesystemslib.signer import CryptoSigner


def plain_file(simulator: Any, voice: Any, data: bytes, path: str, kind: str) -> SignedFile:
    import hashlib
    import io

    from edgewise_protocol.chunks import build_index

    voice.publish_blob(data)
    index = voice.publish_blob(build_index(io.BytesIO(data)))
    custom = TargetCustom(chunk_index=index, kind=kind, model="tiny")
    return SignedFile(path=path, length=len(data), sha256=hashlib.sha256(data).hexdigest(), custom=custom)


def test_offers_and_their_files(voice: Any, run_agent: Callable[..., Any], simulator: Any) -> None:
    training = plain_file(simulator, voice, b"t" * 300_000, "rounds/lab/tiny/1.ewb", "training")
    weights = plain_file(simulator, voice, b"w" * 10, "rounds/lab/tiny/r1.safetensors", "weights")
    body = OfferBody(round_id="r1", federation="f", number=1, channel="lab", model="tiny")
    offer = build_offer(body, training, weights, expires=simulator.in_days(1))
    voice.publish_metadata()
    with run_agent() as device:
        voice.wait("status", lambda s: s.online, "a birth")
        agent = device.agent
        with pytest.raises(OfferError, match="not signed"):
            agent._gate.offer(encode_metadata(offer))
        offer.sign(voice.repository.signers["offers"])
        found = agent._gate.offer(encode_metadata(offer))
        assert found.training == training
        path = agent._fetch(training)
        assert path.read_bytes() == b"t" * 300_000
        voice.publish(topics.blob(training.sha256, 0), b"")
        assert agent._fetch(training) == path
        voice.publish(topics.blob(weights.sha256, 0), b"x" * 10)
        with pytest.raises((ChunkError, BundleDigestError)):
            agent._fetch(weights)


def test_a_rotated_root_is_followed_and_a_forged_one_is_not(
    voice: Any, run_agent: Callable[..., Any], simulator: Any
) -> None:
    file, data = simulator.make_bundle(1)
    repository = voice.repository
    with run_agent():
        new = CryptoSigner.generate_ed25519()
        root = repository.root.signed
        old_id = repository.signers["timestamp"].public_key.keyid
        root.revoke_key(old_id, "timestamp")
        root.add_key(new.public_key, "timestamp")
        root.version = 2
        repository.root.signatures.clear()
        repository.root.sign(CryptoSigner.generate_ed25519())
        repository.signers["timestamp"] = new
        repository.timestamp.signatures.clear()
        voice.release(file, data)
        voice.assign((file,), 1)
        voice.wait_refusal("metadata-unsigned")
        repository.root.signatures.clear()
        repository.root.sign(repository.signers["root"])
        voice.publish_metadata()
        voice.assign((file,), 2)
        voice.wait_model("committed", 1)


def test_a_clock_in_the_past_installs_nothing_and_serves_on(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, tmp_path: Any, x: Any
) -> None:
    one, one_data = simulator.make_bundle(1)
    two, two_data = simulator.make_bundle(2)
    voice.release(one, one_data)
    voice.release(two, two_data)
    with run_agent():
        voice.assign((one,), 1)
        voice.wait_model("committed", 1)
    floor = tmp_path / "state/clock"
    floor.write_text(json.dumps({"floor": json.loads(floor.read_text())["floor"] + 30 * 24 * 3600}))
    with run_agent() as device:
        voice.assign((two,), 2)
        voice.wait_refusal("clock-behind")
        assert device.infer(x)[0] == 1


def test_metadata_that_are_not_there_yet_are_waited_for(
    voice: Any, run_agent: Callable[..., Any], simulator: Any
) -> None:
    file, data = simulator.make_bundle(1)
    voice.publish(topics.SENTINEL, b"1")
    with run_agent(want_wait_s=0.2) as device:
        voice.assign((file,), 1)
        voice.wait_refusal("metadata-unavailable")
        voice.wait("want", lambda w: w.metadata == ("timestamp.json",), "a want for metadata")
        with pytest.raises(MetadataUnavailableError):
            device.agent._gate.refresh()
        voice.release(file, data)
        voice.wait_model("committed", 1)


def test_an_offer_reaches_the_federated_client_and_a_forged_one_is_refused_there(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, tmp_path: Any
) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    data = tmp_path / "train.safetensors"
    save_file({"x": np.zeros((4, 4), np.float32), "y": np.zeros(4, np.int64)}, str(data))
    training = plain_file(simulator, voice, b"t", "rounds/lab/tiny/1.ewb", "training")
    weights = plain_file(simulator, voice, b"w", "rounds/lab/tiny/r1.safetensors", "weights")
    body = OfferBody(round_id="r1", federation="f", number=1, channel="lab", model="tiny")
    offer = build_offer(body, training, weights, expires=simulator.in_days(1))
    offer.sign(voice.repository.signers["director"])
    voice.publish_metadata()
    with run_agent(train_data=str(data)):
        voice.publish(topics.round_offer("r1"), encode_metadata(offer))
        event = voice.wait("event", lambda e: e.kind == "round", "the refusal of the offer")
        assert "not signed by this fleet's offers role" in event.text
        offer.signatures.clear()
        offer.sign(voice.repository.signers["offers"])
        voice.publish(topics.round_offer("r1"), encode_metadata(offer))
        # Signed as it must be, it is taken up; what it names is no bundle, which only its reader can find.
        voice.wait("event", lambda e: e.kind == "round" and "not signed" not in e.text, "the offer being taken up")


def test_a_freeze_is_told_although_what_is_installed_serves_on(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, x: Any
) -> None:
    """Found by attacking: nothing was to be installed, so nothing was refused, and nobody heard of the freeze."""
    one = simulator.make_bundle(1)
    voice.release(*one)
    with run_agent() as device:
        voice.assign((one[0],), 1)
        voice.wait_model("committed", 1)
        timestamp = voice.repository.timestamp.signed
        honest, timestamp.expires = timestamp.expires, simulator.in_days(-1)
        voice.publish_metadata()
        voice.assign((one[0],), 2)
        voice.wait_security("timestamp-expired")
        report = voice.wait_refusal("timestamp-expired")
        assert report.assignment_version == 2 and device.infer(x)[0] == 1
        timestamp.expires = honest
        voice.publish_metadata()
        voice.forget()
        voice.assign((one[0],), 3)
        voice.wait("reported", lambda r: r.assignment_version == 3 and not r.error_code, "the end of the freeze")
