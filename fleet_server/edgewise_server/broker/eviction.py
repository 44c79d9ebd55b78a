"""Ends the open connection of a revoked device: the broker checks certificates when a connection begins, and not again.

MQTT has the broker end a connection when its client id connects anew (MQTT 5.0 section 3.1.4-3), and here the client
id is the certificate's common name. So the server connects once under the device's name, with a certificate that it
issues to itself for a few minutes, and leaves: the session ends with it. The device cannot come back, for its own
certificate stands in the revocation list that the broker has read before.
"""

from __future__ import annotations

import ssl
import tempfile
import threading
from pathlib import Path
from typing import Any, Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgewise_server.errors import ServerError
from edgewise_server.pki.authority import Credential

CONNECT_S: Final = 5.0
LIFE_DAYS: Final = 10 / (24 * 60)
"""Life of the certificate under the device's name: ten minutes."""


class EvictionError(ServerError):
    """A revoked device's open connection could not be ended."""

    code = "eviction"


def evict(host: str, port: int, device_id: str, credential: Credential, fleet_ca_pem: str) -> None:
    """Take a device's connection over, and end it.

    Raises:
        EvictionError: the broker cannot be reached, or does not accept it; the device may still be connected.
    """
    context = _tls(credential, fleet_ca_pem)
    answered = threading.Event()
    outcome: list[str] = []

    def connected(_client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        outcome.append(str(reason) if reason.is_failure else "")
        answered.set()

    def disconnected(_client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        outcome.append(str(reason))
        answered.set()

    client = mqtt.Client(
        CallbackAPIVersion.VERSION2, client_id=device_id, protocol=mqtt.MQTTv5, reconnect_on_failure=False
    )
    client.connect_timeout = CONNECT_S
    client.on_connect, client.on_disconnect = connected, disconnected
    client.tls_set_context(context)
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = 0
    try:
        client.connect(host, port, clean_start=True, properties=properties)
        client.loop_start()
        answered.wait(CONNECT_S)
    except (OSError, ValueError) as error:
        raise EvictionError(f"the connection of {device_id} could not be ended: {error}") from error
    finally:
        client.disconnect()
        client.loop_stop()
    if not outcome or outcome[0]:
        why = outcome[0] if outcome else f"no answer within {CONNECT_S:g} s"
        raise EvictionError(f"the connection of {device_id} could not be ended: {why}")


def _tls(credential: Credential, fleet_ca_pem: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=fleet_ca_pem)
    # `ssl` reads a certificate from a file only.
    with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
        path = Path(folder) / "client.pem"
        path.touch(0o600)
        path.write_bytes(credential.bundle)
        context.load_cert_chain(path)
    return context
