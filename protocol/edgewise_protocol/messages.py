"""Control messages on the wire: versioned JSON with bounded lengths.

Unknown fields are accepted, an unknown major version is refused. Times are seconds since
the Unix epoch (UTC), durations seconds, latencies milliseconds, memory MiB.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from edgewise_protocol.bounds import MAX_CONTROL_BYTES, MAX_FEATURES, MAX_TEXT_CHARS, MAX_UPDATE_BYTES
from edgewise_protocol.deployment import DeploymentState
from edgewise_protocol.errors import MalformedError
from edgewise_protocol.facts import DeviceFacts
from edgewise_protocol.manifest import Name, Sha256, check_major
from edgewise_protocol.sketches import FeatureSketch

Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
WindowCount = Annotated[int, Meta(ge=0, le=2**32)]
"""Of one window: whoever adds up windows must not overflow."""
Milliseconds = Annotated[float, Meta(ge=0, le=1e12)]
Metric = Annotated[float, Meta(ge=-1e12, le=1e12)]
NoVersion = Annotated[int, Meta(ge=0, le=2**31 - 1)]
"""A version, or 0 for none."""
NoSha256 = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$(?!\n)")]
"""A digest, or empty for none."""
RoleFile = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^/+#\x00]+$")]
"""What `topics.metadata` takes."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of every control message."""

    spec_version: str = "1.0"


class Status(Message, frozen=True, kw_only=True):
    """`dev/{id}/status`, retained: birth (`online` true) and last will (`online` false).

    `session` is random per connection: a will with another session than the newest birth is stale.
    """

    online: bool
    session: Annotated[str, Meta(min_length=1, max_length=64)]
    at: Seconds = 0.0
    facts: DeviceFacts | None = None
    serving_url: Annotated[str, Meta(max_length=200)] = ""
    certificate_serial: Annotated[str, Meta(pattern=r"^[0-9a-f]{0,40}$(?!\n)")] = ""
    """Hexadecimal serial of the certificate that this session uses: the word that a renewed one works."""
    instance: Annotated[str, Meta(pattern=r"^([0-9a-f]{32})?$(?!\n)")] = ""
    """Salted hash of what tells this hardware from other hardware: serial numbers and MACs never leave it."""
    run: Annotated[str, Meta(pattern=r"^[0-9a-f]{0,32}$(?!\n)")] = ""
    """Random id of this start of the agent: one that comes back after another means two agents, one identity."""


class ModelReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a device does with one model."""

    model: Name
    state: DeploymentState
    since: Seconds
    active_version: NoVersion = 0
    """Version that serves now; 0 when none does."""
    active_sha256: NoSha256 = ""
    target_version: NoVersion = 0
    """Version of the assignment that `state` speaks of; 0 when none was assigned."""
    target_sha256: NoSha256 = ""
    previous_version: NoVersion = 0
    error_code: Annotated[str, Meta(max_length=64)] = ""
    error: Text = ""
    self_test: dict[str, float] = {}
    """`latency_ms`, `peak_mib`, `max_abs_error`, `top1`, ... of the last self-test."""


class Reported(Message, frozen=True, kw_only=True):
    """`dev/{id}/reported`, retained: what runs in each slot, since when, why not."""

    at: Seconds
    assignment_version: Count
    deployment: Name = "none"
    models: Annotated[tuple[ModelReport, ...], Meta(max_length=64)] = ()
    error_code: Annotated[str, Meta(max_length=64)] = ""
    """Why the newest assignment was refused, if it was."""
    error: Text = ""
    simulated: bool = False


class Streamed(Message, frozen=True, kw_only=True):
    """Base of what goes through the outbox. (device, stream, seq) names a message for good."""

    stream: Annotated[str, Meta(min_length=1, max_length=64)]
    """Random id of the outbox file, so that a new outbox does not repeat sequences."""
    seq: Annotated[int, Meta(ge=1, le=2**53)]
    at: Seconds
    after: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    """The highest lower sequence that the device still held when it sent this; 0 where it held none.

    What lies between is stored, or given up for good by the bounded outbox: it never comes, and need not be waited
    for. Absent: `seq - 1`. The outbox adds it each time that it sends (`with_after`)."""


class Event(Streamed, frozen=True, kw_only=True):
    """`dev/{id}/event`: something happened: `deployment`, `security`, `round`, `agent`."""

    kind: Name
    code: Annotated[str, Meta(max_length=64)] = ""
    text: Text = ""
    data: dict[str, str | int | float | bool] = {}


class ModelTelemetry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    model: Name
    version: NoVersion
    requests: WindowCount = 0
    errors: WindowCount = 0
    latency_p50_ms: Milliseconds = 0.0
    latency_p95_ms: Milliseconds = 0.0
    latency_max_ms: Milliseconds = 0.0


class Telemetry(Streamed, frozen=True, kw_only=True):
    """`dev/{id}/telemetry`: counters of one window."""

    window_s: Seconds
    models: Annotated[tuple[ModelTelemetry, ...], Meta(max_length=64)] = ()
    rss_mib: float = 0.0
    cpu_s: float = 0.0
    load1: float = 0.0
    temperature_c: float | None = None
    outbox_messages: Count = 0
    outbox_dropped: Count = 0
    """Messages that the bounded outbox had to give up since its creation; never silent."""
    simulated: bool = False


class Drift(Streamed, frozen=True, kw_only=True):
    """`dev/{id}/drift`: sketches of one window of one model."""

    model: Name
    version: NoVersion
    window_s: Seconds
    samples: Count
    features: Annotated[dict[str, FeatureSketch], Meta(max_length=MAX_FEATURES)]
    simulated: bool = False


class Ack(Message, frozen=True, kw_only=True):
    """`dev/{id}/ack`: every message of `stream` up to `through` is stored.

    `round_id`, `chunks_through` and `credits` speak of an update's upload: chunks below
    `chunks_through` are stored, and `credits` more may be sent.
    """

    stream: str = ""
    through: Count = 0
    round_id: str = ""
    chunks_through: Count = 0
    credits: Annotated[int, Meta(ge=0, le=64)] = 0
    complete: bool = False
    error: Text = ""
    identity: Annotated[str, Meta(max_length=64)] = ""
    """`cloned-identity` in answer to a birth: two machines were seen to take turns with this identity."""


class WantedChunks(msgspec.Struct, frozen=True, kw_only=True):
    sha256: Sha256
    chunks: Annotated[tuple[int, ...], Meta(max_length=64)]


class Want(Message, frozen=True, kw_only=True):
    """`dev/{id}/want`: chunks or metadata that the broker does not have; publish them again."""

    blobs: Annotated[tuple[WantedChunks, ...], Meta(max_length=16)] = ()
    metadata: Annotated[tuple[RoleFile, ...], Meta(max_length=16)] = ()


class UpdateReady(Message, frozen=True, kw_only=True):
    """`dev/{id}/update-ready`: a client has trained and asks for credits to upload its update.

    The update is a safetensors file of `p.*` and `b.*`, cut in chunks of `CHUNK_BYTES`.
    """

    round_id: Name
    length: Annotated[int, Meta(ge=1, le=MAX_UPDATE_BYTES)]
    sha256: Sha256
    samples: Annotated[int, Meta(ge=1, le=10**9)]
    metrics: dict[str, Metric] = {}
    """`loss_before`, `loss_after`, `accuracy_before`, `accuracy_after`, `steps`, `seconds`."""
    simulated: bool = False


AFTER_BYTES: Final = 32
"""Room that a message in the outbox leaves for `with_after`."""

M = TypeVar("M", bound=Message)
_decoders: dict[type[Any], msgspec.json.Decoder[Any]] = {}


def encode(message: Message) -> bytes:
    """JSON bytes of a message."""
    return msgspec.json.encode(message)


def with_after(payload: bytes, after: int) -> bytes:
    """An encoded `Streamed` message without `after`, with it; at most `AFTER_BYTES` longer."""
    return b'%b,"after":%d}' % (payload[:-1], after)


def decode(kind: type[M], data: bytes, limit: int = MAX_CONTROL_BYTES) -> M:
    """Parse a message of one kind.

    Raises:
        MalformedError: longer than `limit` bytes, not JSON, or a field is missing or out of bounds.
        UnsupportedVersionError: an unknown major version.
    """
    if len(data) > limit:
        raise MalformedError(f"a {kind.__name__} message of {len(data)} bytes; at most {limit} are allowed")
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        message: M = decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedError(f"not a valid {kind.__name__} message: {error}") from error
    check_major(message.spec_version)
    return message
