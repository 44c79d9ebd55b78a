"""The enrolment file and the enrolment exchange.

One file takes a device into a fleet: where the server and the broker are, the fleet's CA,
the first TUF root, and a one-time token. There is no trust on first use: everything that
the device trusts afterwards comes from this file, which the operator hands over.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgewise_protocol.bounds import MAX_ROOT_BYTES
from edgewise_protocol.errors import MalformedError
from edgewise_protocol.facts import DeviceFacts
from edgewise_protocol.manifest import Name, check_major

_MAX_FILE_BYTES = 2 * MAX_ROOT_BYTES


class BrokerAddress(msgspec.Struct, frozen=True, kw_only=True):
    host: Annotated[str, Meta(min_length=1, max_length=255)]
    port: Annotated[int, Meta(ge=1, le=65535)]
    tls: bool = False
    transport: Literal["tcp", "websockets"] = "tcp"
    path: Annotated[str, Meta(pattern=r"^/[A-Za-z0-9/._~-]*$", max_length=200)] = "/mqtt"
    """Of the WebSocket; nothing else uses it."""


class EnrolmentFile(msgspec.Struct, frozen=True, kw_only=True):
    """`*.enrol.json`; a secret until its token is used or expires."""

    spec_version: str = "1.0"
    server_url: Annotated[str, Meta(pattern=r"^https?://", max_length=500)]
    broker: BrokerAddress
    fleet_ca: str
    """PEM of the fleet's root certificate."""
    tuf_root: str
    """JSON text of a TUF root metadata file."""
    token: Annotated[str, Meta(min_length=16, max_length=200)]
    channel: Name
    name: str = ""
    """Device id to take, or empty for one that the server makes."""


class EnrolRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /api/v1/enrol`."""

    token: Annotated[str, Meta(min_length=16, max_length=200)]
    csr_pem: Annotated[str, Meta(max_length=16_384)]
    facts: DeviceFacts


class EnrolResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `POST /api/v1/enrol`."""

    device_id: Name
    channel: Name
    certificate_pem: str
    """Leaf first, then intermediates."""


def decode_enrolment(data: bytes) -> EnrolmentFile:
    """Parse an enrolment file; raise `MalformedError` if it is not one."""
    if len(data) > _MAX_FILE_BYTES:
        raise MalformedError(f"the enrolment file has {len(data)} bytes; at most {_MAX_FILE_BYTES} are allowed")
    try:
        found = msgspec.json.decode(data, type=EnrolmentFile)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedError(f"this is not an enrolment file: {error}") from error
    check_major(found.spec_version)
    return found
