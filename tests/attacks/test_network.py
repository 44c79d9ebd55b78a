"""The danger: whoever owns the network, or the broker's machine, decides what devices run, or stops them.

The attacker stands between the devices and the broker and holds the broker's keys, so that TLS ends in its hands:
it may hold back, replay, alter, lengthen and delay whatever is on its way to a device.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from edgewise_protocol import topics
from edgewise_protocol.bounds import CHUNK_BYTES, MAX_TIMESTAMP_BYTES
from edgewise_protocol.chunks import build_index, iter_chunks

pytestmark = pytest.mark.slow

TIMESTAMP = topics.metadata("timestamp.json")
VICTIM = "porch"
SLOW_S = 15
"""A bundle must be confirmed this long after its assignment; nine chunks of a quarter of it each are too late."""


def test_hands_that_change_nothing_stop_nothing(scene: Any) -> None:
    """The control of this module: through the attacker's hands the main job works, so what follows is the change."""
    seen: list[str] = []

    def watch(device: str, topic: str, payload: bytes) -> bytes:
        seen.append(topic)
        return payload

    with scene.network.hostile(scene.thief, watch):
        scene.works()
    assert TIMESTAMP in seen and "ew/1/dev/porch/assignment" in seen
    scene.works()


def test_arbitrary_bundle(scene: Any) -> None:
    """A model of the attacker's in place of the signed one, chunk index and all."""
    wanted = scene.bundle(scene.next)
    other = (scene.fleet.folder / "bundles" / f"meter-1-{wanted.custom.profile}.ewb").read_bytes()
    chunks, index = list(iter_chunks(io.BytesIO(other))), build_index(io.BytesIO(other))
    assert hashlib.sha256(other).hexdigest() != wanted.sha256

    def replace(device: str, topic: str, payload: bytes) -> bytes:
        if device != VICTIM:
            return payload
        if topic.startswith(f"ew/1/blob/{wanted.sha256}/"):
            return chunks[int(topic.rpartition("/")[2])]
        return index if topic == topics.blob(wanted.custom.chunk_index, 0) else payload

    with scene.network.hostile(scene.thief, replace):
        rollout = scene.start(wanted.custom.version)
        scene.told("bundle-tampered")
        assert scene.ended(rollout, "aborted")["outcomes"][VICTIM] == "bundle-tampered"
    scene.works()


def test_an_altered_chunk(scene: Any) -> None:
    wanted = scene.bundle(scene.next)

    def alter(device: str, topic: str, payload: bytes) -> bytes:
        return payload[:-1] + bytes([payload[-1] ^ 1]) if wanted.sha256 in topic and device == VICTIM else payload

    with scene.network.hostile(scene.thief, alter):
        rollout = scene.start(wanted.custom.version)
        scene.told("chunk-tampered")
        scene.ended(rollout, "aborted")
    scene.works()


def test_freeze(scene: Any) -> None:
    """The true timestamp of a moment, for ever: the fleet's newer word never arrives."""
    first: dict[str, bytes] = {}

    def freeze(device: str, topic: str, payload: bytes) -> bytes:
        return first.setdefault(topic, payload) if topic == TIMESTAMP else payload

    with scene.network.hostile(scene.thief, freeze):
        scene.refuses("timestamp-expired", timeout_s=45)
    scene.works()


def test_rollback_of_metadata(scene: Any) -> None:
    """A timestamp that was true once, and has not expired yet."""
    old = scene.thief.read("timestamp.json")
    scene.works()
    trusted = scene.victim.state / "metadata" / "timestamp.json"
    scene.fleet.wait_for("the device has a newer one", lambda: _version(trusted.read_bytes()) > _version(old))
    scene.begin()

    def replay(device: str, topic: str, payload: bytes) -> bytes:
        return old if topic == TIMESTAMP else payload

    with scene.network.hostile(scene.thief, replay):
        scene.refuses("metadata-rollback")
    scene.works()


def test_mix_and_match(scene: Any) -> None:
    """Targets metadata of one release under the snapshot of another, each with true signatures."""
    old = scene.thief.read("targets.json")
    newest = topics.metadata(f"{scene.thief.role('targets').signed.version + 1}.targets.json")

    def mix(device: str, topic: str, payload: bytes) -> bytes:
        return old if topic == newest else payload

    with scene.network.hostile(scene.thief, mix):
        scene.fleet.publish("another", 1)
        scene.refuses("metadata-tampered")
    scene.works()


@pytest.mark.parametrize("what", ["timestamp", "chunk", "packet"])
def test_endless_data(scene: Any, networks: Any, what: str) -> None:
    """More than there may be of metadata, of a chunk, and of one MQTT packet: none of it is gathered first."""
    wanted = scene.bundle(scene.next)
    sent = [0]

    async def flood() -> AsyncIterator[bytes]:
        """A message of 256 MB, of which the device must not take more than what is in the kernel's buffers."""
        sent.append(0)
        yield bytes([0x32]) + networks.remaining_length((1 << 28) - 1) + b"\x00\x04ew/1"
        block = b"x" * 65536
        while True:
            sent[-1] += len(block)
            yield block

    def flooding(device: str, topic: str, payload: bytes) -> Any:
        if device != VICTIM:
            return payload
        if what == "timestamp" and topic == TIMESTAMP:
            return payload + b" " * MAX_TIMESTAMP_BYTES
        if what == "chunk" and wanted.sha256 in topic:
            return payload + b"x" * (4_000_000 - len(payload))
        if what == "packet" and topic == TIMESTAMP:
            return networks.Stream(flood)
        return payload

    before = _resident(scene)
    with scene.network.hostile(scene.thief, flooding):
        if what == "timestamp":
            scene.refuses("metadata-tampered")
        elif what == "chunk":
            rollout = scene.start(wanted.custom.version)
            scene.told("chunk-tampered")
            scene.ended(rollout, "aborted")
        else:
            scene.fleet.wait_for(
                "the device leaves the broker", lambda: '"packet-too-large"' in scene.victim.process.text
            )
            scene.serves()
            assert max(sent) < 64 << 20
    assert len(scene.victim.process.text) < 4 << 20
    assert _resident(scene) < before + (64 << 20), "what was sent was gathered"
    assert CHUNK_BYTES < 4_000_000
    scene.works()


def test_slow_retrieval(scene: Any, networks: Any) -> None:
    """Each chunk comes just in time to keep the device waiting for the next; its answers to clients do not wait."""
    fleet = scene.fleet
    fleet.publish("long", 1, padding=8 * CHUNK_BYTES)
    slowed = scene.thief.signed("long".join(scene.path(1).split("meter")))

    def trickle(device: str, topic: str, payload: bytes) -> Any:
        return networks.Late(payload, SLOW_S / 4) if slowed.sha256 in topic and device == VICTIM else payload

    with scene.network.hostile(scene.thief, trickle):
        ended = scene.ended(scene.start(1, "long", SLOW_S), "aborted")
        assert ended["outcomes"][VICTIM] == "confirm-expired"
        scene.serves()
    fleet.wait_for(
        "porch has gone back", lambda: all(m["model"] != "long" for m in fleet.get("/devices/porch")["models"])
    )
    # In honest hands the same bundle arrives within the same time.
    scene.ended(scene.start(1, "long", SLOW_S), "completed")
    assert scene.victim.serves("long") == 1
    scene.works()


def _version(metadata: bytes) -> int:
    return int(json.loads(metadata)["signed"]["version"])


def _resident(scene: Any) -> int:
    """Bytes of the agent's memory at its highest."""
    text = Path(f"/proc/{scene.victim.process._running.pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM"))
