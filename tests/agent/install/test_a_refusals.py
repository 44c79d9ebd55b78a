"""Guards against a device that acts on what the fleet did not sign, or that stops serving because of it.

Each case: version 1 serves; something bad arrives; the agent refuses it with the code that
names the cause, as an event and in its report; version 1 goes on answering meanwhile.
"""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgewise_protocol import topics
from edgewise_protocol.chunks import build_index
from msgspec.structs import replace


@dataclass(frozen=True)
class Prepared:
    state: Path
    port: int
    repository: Any
    first: Any


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory,
    simulator: Any,
    enrol_here: Callable[..., Path],
    start_agent: Callable[..., Any],
    make_mosquitto: Callable[[Path], Any],
) -> Prepared:
    """A device on which version 1 was assigned (assignment 5) and confirmed; made once, copied for each test."""
    folder = tmp_path_factory.mktemp("prepared")
    broker = make_mosquitto(folder)
    broker.start()
    voice = simulator.FleetVoice(broker.port, "device-1")
    try:
        state = enrol_here(folder / "state", broker.port, voice.repository.root_bytes)
        file, data = simulator.make_bundle(1)
        voice.release(file, data)
        with start_agent(state):
            voice.assign((file,), 5)
            voice.wait_model("committed", 1)
        return Prepared(state, broker.port, voice.repository, file)
    finally:
        voice.close()
        broker.stop()


@pytest.fixture
def serving(
    prepared: Prepared,
    tmp_path: Path,
    voice: Any,
    mosquitto: Any,
    run_agent: Callable[..., Any],
    simulator: Any,
    x: Any,
) -> Iterator[Any]:
    """A running copy of the prepared device; it must answer with version 1 to the end."""
    state = Path(shutil.copytree(prepared.state, tmp_path / "state"))
    card = state / "identity/identity.json"
    card.write_text(card.read_text().replace(str(prepared.port), str(mosquitto.port)))
    voice.repository = prepared.repository.copy()
    voice.publish_metadata()
    with run_agent() as device:
        voice.wait("status", lambda s: s.online, "a birth")
        still_serves_version_1(device, simulator, x)
        yield device
        still_serves_version_1(device, simulator, x)


def still_serves_version_1(device: Any, simulator: Any, x: np.ndarray) -> None:
    version, logits = device.infer(x)
    assert version == 1
    np.testing.assert_allclose(logits, simulator.logits_of(1, x), atol=1e-4)


def test_a_tampered_chunk(serving: Any, voice: Any, simulator: Any) -> None:
    file, data = simulator.make_bundle(2, padding=300_000)
    voice.release(file, data)
    chunk = bytearray(voice.blobs[file.sha256][1])
    chunk[100] ^= 1
    voice.publish(topics.blob(file.sha256, 1), bytes(chunk))
    voice.assign((file,), 6)
    report = voice.wait_model("failed", 2, error_code="chunk-tampered")
    assert "chunk 1" in report.error and report.active_version == 1
    assert voice.wait_security("chunk-tampered").data["version"] == 2


def test_a_tampered_bundle_with_an_index_to_match(serving: Any, voice: Any, simulator: Any) -> None:
    file, data = simulator.make_bundle(2)
    voice.release(file, data)
    forged = bytearray(data)
    forged[-200] ^= 1
    for n, chunk in enumerate(voice.blobs[file.sha256]):
        voice.publish(topics.blob(file.sha256, n), bytes(forged[n * len(chunk) : (n + 1) * len(chunk)]))
    voice.publish(topics.blob(file.custom.chunk_index, 0), build_index(io.BytesIO(bytes(forged))))
    voice.assign((file,), 6)
    assert voice.wait_model("failed", 2, error_code="bundle-tampered").active_version == 1
    voice.wait_security("bundle-tampered")


def test_a_bundle_whose_digest_is_not_the_signed_one(serving: Any, voice: Any, simulator: Any) -> None:
    """The index is signed and every chunk fits it, but the whole is not the file that was signed."""
    file, data = simulator.make_bundle(2)
    lie = replace(file, sha256="ab" * 32)
    voice.publish_blob(build_index(io.BytesIO(data)))
    for n, chunk in enumerate([data]):
        voice.publish(topics.blob(lie.sha256, n), chunk)
    voice.repository.add(lie)
    voice.publish_metadata()
    voice.assign((lie,), 6)
    assert voice.wait_model("failed", 2, error_code="bundle-tampered").active_version == 1


def test_a_bundle_of_another_version_than_signed(serving: Any, voice: Any, simulator: Any) -> None:
    file, data = simulator.make_bundle(2)
    lie = replace(file, custom=replace(file.custom, version=3), path=file.path.replace("2.ewb", "3.ewb"))
    voice.release(lie, data)
    voice.assign((lie,), 6)
    assert voice.wait_model("failed", 3, error_code="bundle-mismatch").active_version == 1


def test_what_failed_stays_failed_after_a_restart_and_the_old_model_serves(
    serving: Any, prepared: Prepared, voice: Any, simulator: Any, x: np.ndarray
) -> None:
    file, data = simulator.make_bundle(2)
    voice.release(file, data)
    voice.publish(topics.blob(file.sha256, 0), b"tampered")
    voice.assign((file,), 6)
    voice.wait_model("failed", 2, error_code="chunk-tampered")
    voice.publish(topics.blob(file.sha256, 0), data)
    serving.restart()
    still_serves_version_1(serving, simulator, x)
    looked, look = threading.Event(), serving.agent._gate.assignment

    def spy(assignment: bytes, accepted: int) -> Any:
        try:
            return look(assignment, accepted)
        finally:
            looked.set()

    serving.agent._gate.assignment = spy
    voice.forget()
    voice.assign((file,), 6)
    assert looked.wait(10)
    voice.assign((prepared.first,), 7)
    voice.wait_model("committed", 1)
    states = {m.state for leaf, r in voice.heard if leaf == "reported" for m in r.models if m.target_version == 2}
    assert states <= {"failed"}


def test_an_older_assignment(serving: Any, voice: Any, simulator: Any) -> None:
    file, data = simulator.make_bundle(2)
    voice.release(file, data)
    voice.assign((file,), 4)
    assert "version 5 was accepted" in voice.wait_refusal("assignment-stale").error
    voice.wait_security("assignment-stale")


def test_an_expired_timestamp(serving: Any, voice: Any, simulator: Any) -> None:
    file, data = simulator.make_bundle(2)
    voice.repository.timestamp.signed.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    voice.release(file, data)
    voice.assign((file,), 6)
    assert voice.wait_refusal("timestamp-expired").models[0].active_version == 1
    voice.wait_security("timestamp-expired")


def test_an_unsigned_assignment(serving: Any, voice: Any, simulator: Any) -> None:
    file, data = simulator.make_bundle(2)
    voice.release(file, data)
    voice.assign((file,), 6, signer="")
    voice.wait_refusal("assignment-unsigned")
    voice.wait_security("assignment-unsigned")


def test_an_assignment_signed_by_another_role(serving: Any, voice: Any, simulator: Any) -> None:
    file, data = simulator.make_bundle(2)
    voice.release(file, data)
    voice.assign((file,), 6, signer="timestamp")
    voice.wait_refusal("assignment-unsigned")


def test_an_assignment_for_another_device(serving: Any, voice: Any, simulator: Any) -> None:
    file, data = simulator.make_bundle(2)
    voice.release(file, data)
    voice.assign((file,), 6, device="device-2")
    assert "device-2" in voice.wait_refusal("assignment-wrong-device").error
    voice.wait_security("assignment-wrong-device")


def test_an_expired_assignment(serving: Any, voice: Any, simulator: Any) -> None:
    file, data = simulator.make_bundle(2)
    voice.release(file, data)
    voice.assign((file,), 6, days=-1)
    voice.wait_refusal("assignment-expired")


def test_an_assignment_outside_of_the_channel(serving: Any, voice: Any, simulator: Any) -> None:
    file, data = simulator.make_bundle(2, channel="production")
    voice.release(file, data)
    voice.assign((file,), 6)
    voice.wait_refusal("assignment-wrong-channel")


def test_a_bundle_that_nobody_signed(serving: Any, voice: Any, simulator: Any) -> None:
    file, _data = simulator.make_bundle(2)
    voice.assign((file,), 6)
    voice.wait_refusal("assignment-unknown-target")


def test_a_bundle_below_the_signed_floor(serving: Any, voice: Any, simulator: Any) -> None:
    file, data = simulator.make_bundle(2)
    voice.repository.targets.signed.unrecognized_fields["edgewise"] = {"floors": {simulator.MODEL: 3}}
    voice.release(file, data)
    voice.assign((file,), 6)
    voice.wait_refusal("assignment-below-floor")


def test_an_older_timestamp(serving: Any, voice: Any, simulator: Any) -> None:
    file, data = simulator.make_bundle(2)
    voice.repository.timestamp.signed.version = 0
    voice.release(file, data)
    voice.assign((file,), 6)
    voice.wait_refusal("metadata-rollback")


def test_targets_signed_by_a_stranger(serving: Any, voice: Any, simulator: Any) -> None:
    file, data = simulator.make_bundle(2)
    voice.repository.signers["targets"] = voice.repository.signers["director"]
    voice.release(file, data)
    voice.assign((file,), 6)
    voice.wait_refusal("metadata-unsigned")


def test_bytes_that_are_no_assignment(serving: Any, voice: Any) -> None:
    voice.send_assignment(b"{]")
    voice.wait_refusal("malformed")


def test_a_refusal_is_forgotten_when_a_good_assignment_comes(
    serving: Any, prepared: Prepared, voice: Any, simulator: Any
) -> None:
    file, data = simulator.make_bundle(2)
    voice.release(file, data)
    voice.assign((file,), 6, signer="")
    voice.wait_refusal("assignment-unsigned")
    voice.forget()
    voice.assign((prepared.first,), 7)
    voice.wait("reported", lambda r: r.assignment_version == 7 and not r.error_code, "assignment 7")


def test_an_assignment_that_cannot_be_signed_at_all(
    serving: Any, prepared: Prepared, voice: Any, simulator: Any
) -> None:
    """Found in review: a float in it ended the installer's thread, and with it rollback and every later update."""
    document = (
        b'{"signatures":[],"signed":{"_type":"targets","spec_version":"1.0.31","version":9,'
        b'"expires":"2099-01-01T00:00:00Z","targets":{},"any":0.5}}'
    )
    voice.send_assignment(document)
    voice.wait_refusal("assignment-unsigned")
    file, data = simulator.make_bundle(2)
    voice.release(file, data)
    voice.assign((file,), 6)
    voice.wait_model("committed", 2)
    voice.forget()
    voice.assign((prepared.first,), 7)
    voice.wait_model("committed", 1)


def test_an_installed_bundle_below_the_floor_under_another_version(
    serving: Any, prepared: Prepared, voice: Any, simulator: Any
) -> None:
    """The floor is looked up by what was signed, not by what a stolen director says of the bundle."""
    voice.repository.targets.signed.unrecognized_fields["edgewise"] = {"floors": {simulator.MODEL: 3}}
    voice.publish_metadata()
    custom = replace(prepared.first.custom, version=9)
    voice.assign((replace(prepared.first, custom=custom, path=prepared.first.path.replace("1.ewb", "9.ewb")),), 6)
    voice.wait_refusal("assignment-unknown-target")
    voice.assign((replace(prepared.first, custom=custom),), 7)
    voice.wait_refusal("assignment")


def test_a_bundle_that_the_rounds_role_signed(serving: Any, voice: Any, simulator: Any) -> None:
    """What trains is never served, though its path names the channel."""
    file, data = simulator.make_bundle(2)
    trained = replace(file, path=f"rounds/lab/{simulator.MODEL}/2.ewb")
    voice.release(trained, data)
    voice.assign((trained,), 6)
    voice.wait_refusal("assignment")


def test_the_installer_outlives_a_defect(serving: Any, voice: Any, simulator: Any) -> None:
    look, failed = serving.agent._gate.assignment, threading.Event()

    def fail_once(data: bytes, accepted: int) -> Any:
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError
        return look(data, accepted)

    serving.agent._gate.assignment = fail_once
    voice.assign((), 6, signer="")
    assert failed.wait(10)
    voice.assign((), 7, signer="")
    voice.wait_refusal("assignment-unsigned")
