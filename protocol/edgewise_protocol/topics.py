"""Topics of the wire (MQTT 5, prefix `ew/1`), and nothing else that spells them.

A retired topic is never used again.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from edgewise_protocol.errors import TopicError
from edgewise_protocol.names import check_name, check_sha256

PREFIX: Final = "ew/1"
SENTINEL: Final = f"{PREFIX}/meta/sentinel"
"""Always retained. Subscribed last in a packet, it tells that earlier topics are absent."""

BROKER_STATE: Final = f"{PREFIX}/server/state"
"""Retained by the server for itself: which publications the broker holds. Devices have no use for it."""
BROKER_PROBE: Final = f"{PREFIX}/server/probe"
"""The server sends itself a message on it: what was retained has come before, or is not there."""

DEVICE_STREAMS: Final = ("event", "telemetry", "drift")
"""Outbox streams: QoS 1, acknowledged by `ack` once stored."""


def metadata(role_file: str) -> str:
    """TUF metadata, e.g. `timestamp.json`, `3.targets.json`, `1.auto%2Flab.json`."""
    if not role_file or len(role_file) > 128 or any(c in role_file for c in "/+#\0"):
        raise TopicError(f"{role_file[:80]!r} is not a metadata file name")
    return f"{PREFIX}/meta/{role_file}"


def blob(sha256: str, chunk: int) -> str:
    """Chunk `chunk` of the content-addressed file `sha256`."""
    if not 0 <= chunk < 1_000_000:
        raise TopicError(f"chunk number {chunk} is out of range")
    return f"{PREFIX}/blob/{check_sha256(sha256)}/{chunk}"


def device(device_id: str, leaf: str) -> str:
    """A device's own topic: assignment, status, reported, event, telemetry, drift, ack, want."""
    return f"{PREFIX}/dev/{check_name(device_id, 'device id')}/{check_name(leaf, 'topic')}"


def update(device_id: str, round_id: str, chunk: int) -> str:
    """Chunk `chunk` of a device's update for a federated round."""
    return f"{PREFIX}/dev/{check_name(device_id, 'device id')}/update/{check_name(round_id, 'round id')}/{chunk}"


def round_offer(round_id: str) -> str:
    """The retained, signed offer of one federated round."""
    return f"{PREFIX}/round/{check_name(round_id, 'round id')}"


ALL_ROUND_OFFERS: Final = f"{PREFIX}/round/+"
ALL_DEVICES: Final = f"{PREFIX}/dev/+"
ALL_UPDATES: Final = f"{PREFIX}/dev/+/update/+/+"


class DeviceTopic(NamedTuple):
    """A parsed topic below `dev/{id}`."""

    device_id: str
    leaf: str
    round_id: str | None = None
    chunk: int | None = None


def parse_device(topic: str) -> DeviceTopic:
    """Parse a topic that a device publishes on.

    Raises:
        TopicError: it is not a device topic.
    """
    parts = topic.split("/")
    if len(topic) <= 512 and parts[:3] == ["ew", "1", "dev"]:
        if len(parts) == 5:
            return DeviceTopic(check_name(parts[3], "device id"), check_name(parts[4], "topic"))
        if len(parts) == 7 and parts[4] == "update" and parts[6].isascii() and parts[6].isdigit():
            return DeviceTopic(
                check_name(parts[3], "device id"), "update", check_name(parts[5], "round id"), int(parts[6][:9])
            )
    raise TopicError(f"{topic[:120]!r} is not a device topic")
