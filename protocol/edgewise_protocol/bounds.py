"""Every bound that both ends of the wire rely on, with its unit.

A decoder refuses what exceeds its bound before it parses.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

CHUNK_BYTES: Final = 128 * KIB
"""Payload of one `blob/{sha256}/{n}` message. Below 32 KiB chunks cost; above, flat."""
MAX_CHUNKS_PER_REQUEST: Final = 8
"""Explicit chunk topics in one SUBSCRIBE. A broker's default queue drops the rest in silence."""
MAX_CONTROL_BYTES: Final = 64 * KIB
"""A control message: status, reported, event, telemetry, ack, want."""
MAX_DRIFT_BYTES: Final = 512 * KIB
"""A window of sketches."""
MAX_ASSIGNMENT_BYTES: Final = 64 * KIB
MAX_OFFER_BYTES: Final = 64 * KIB
MAX_ROOT_BYTES: Final = 512 * KIB
MAX_TIMESTAMP_BYTES: Final = 16 * KIB
MAX_METADATA_BYTES: Final = 5_000_000
"""Snapshot, targets and delegated metadata."""
MAX_PACKET_BYTES: Final = 8 * MIB
"""MQTT packets: room for metadata, chunks and sketches."""
MAX_BUNDLE_BYTES: Final = 2048 * MIB
MAX_BUNDLE_FILES: Final = 32
MAX_MANIFEST_BYTES: Final = 256 * KIB
MAX_UPDATE_BYTES: Final = 256 * MIB
"""A federated update, before chunking."""
MAX_NAME_CHARS: Final = 64
MAX_TEXT_CHARS: Final = 2_000
MAX_FEATURES: Final = 256
"""Sketched features of one model."""
MAX_MODELS: Final = 64
"""Models that one device runs, and that one assignment names."""
MAX_BINS: Final = 4_096
MAX_CONFIRM_WITHIN_S: Final = 30 * 24 * 3600
MAX_ASSIGNMENT_VERSION: Final = 1 << 53
MAX_VERSION_JUMP: Final = 1 << 20
"""An assignment's version may be this much above the last accepted one; a restored server bumps it by 10,000."""
