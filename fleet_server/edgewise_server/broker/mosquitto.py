"""Mosquitto's configuration and access list, as text. Pure.

Every device shows a certificate of the fleet; the broker takes its common name as user name and client id
(`use_identity_as_username`, `use_username_as_clientid`), so that nobody speaks as another, and the access list is
written once for all devices, with `%u`. Options and their meaning: mosquitto.conf(5) of Mosquitto 2.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgewise_protocol import topics
from edgewise_protocol.bounds import MAX_PACKET_BYTES, MIB

SERVER_USER: Final = "edgewise-server"
"""Common name of the server's own certificate at the broker; no device may have this name."""
CONFIG_FILE: Final = "mosquitto.conf"
ACL_FILE: Final = "acl"
CA_FILE: Final = "ca.pem"
CRL_FILE: Final = "crl.pem"
BROKER_FILE: Final = "broker.pem"
"""Chain and key of the broker's certificate."""
SERVER_FILE: Final = "server.pem"
"""Chain and key of the server's certificate at the broker."""
PID_FILE: Final = "mosquitto.pid"
DATA_FOLDER: Final = "data"

MAX_CONNECTIONS: Final = 20_000
MAX_INFLIGHT: Final = 1_000
"""The bridge acknowledges after the commit: with Mosquitto's default of 20, a commit could not take more."""
MAX_QUEUED: Final = 100_000
"""Messages that wait while the bridge is away. What exceeds it is dropped, and sent again by the devices' outboxes."""
MAX_QUEUED_BYTES: Final = 256 * MIB
MAX_KEEPALIVE_S: Final = 3_600
AUTOSAVE_S: Final = 300

READABLE: Final = (f"{topics.PREFIX}/meta/#", f"{topics.PREFIX}/blob/#", f"{topics.PREFIX}/round/#")
OWN_READABLE: Final = ("assignment", "ack")
OWN_WRITABLE: Final = ("status", "reported", *topics.DEVICE_STREAMS, "want", "update-ready", "update/+/+")


@dataclass(frozen=True)
class Listening:
    """Where the broker listens, and as whom."""

    folder: Path
    """Absolute; holds all files that the broker reads."""
    port: int
    address: str = ""
    """Empty: all interfaces."""
    user: str = "mosquitto"
    """Whom Mosquitto becomes when root starts it: it must be able to read `folder`."""


def configuration(listening: Listening) -> str:
    """The text of `mosquitto.conf`."""
    folder = listening.folder
    return f"""\
pid_file {folder / PID_FILE}
user {listening.user}
log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages false
sys_interval 0

# Whom the broker lets in, and what for.
per_listener_settings false
allow_anonymous false
allow_zero_length_clientid false
acl_file {folder / ACL_FILE}

# A PUBACK followed by a small packet would otherwise wait some 40 ms.
set_tcp_nodelay true
# What is larger ends the connection. message_size_limit would acknowledge it, and drop it in silence.
max_packet_size {MAX_PACKET_BYTES}
max_inflight_messages {MAX_INFLIGHT}
max_queued_messages {MAX_QUEUED}
max_queued_bytes {MAX_QUEUED_BYTES}
max_keepalive {MAX_KEEPALIVE_S}
# No memory_limit: once it is reached, it blocks every publisher.

# Retained messages and the server's session outlive a restart.
persistence true
persistence_location {folder / DATA_FOLDER}/
autosave_interval {AUTOSAVE_S}
# No persistent_client_expiration: a session that it would end is listed twice after a reload, and later crashes 2.0.11.

listener {listening.port}{f" {listening.address}" if listening.address else ""}
max_connections {MAX_CONNECTIONS}
cafile {folder / CA_FILE}
certfile {folder / BROKER_FILE}
keyfile {folder / BROKER_FILE}
crlfile {folder / CRL_FILE}
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
use_username_as_clientid true
"""


def access_list() -> str:
    """The text of the access list: what is not named is refused, `$SYS` too."""
    lines = [
        "# The server.",
        f"user {SERVER_USER}",
        f"topic readwrite {topics.PREFIX}/#",
        "",
        "# Every device, %u being its id.",
        *(f"pattern read {name}" for name in READABLE),
        *(f"pattern read {topics.PREFIX}/dev/%u/{leaf}" for leaf in OWN_READABLE),
        *(f"pattern write {topics.PREFIX}/dev/%u/{leaf}" for leaf in OWN_WRITABLE),
    ]
    return "\n".join(lines) + "\n"
