"""paho's client with what a device needs of it: a bound on packets, its own way through a proxy, a sign of life."""

from __future__ import annotations

import logging
import socket
from typing import Any, Final

import paho.mqtt.client as mqtt
from edgewise_protocol.bounds import MAX_PACKET_BYTES
from paho.mqtt.enums import MQTTErrorCode

from edgewise_agent.errors import PacketTooLargeError
from edgewise_agent.session.proxy import Proxy, connect_through
from edgewise_agent.watchdog.pulse import Beat

CONNECT_TIMEOUT_S: Final = 10.0

log = logging.getLogger(__name__)


class Client(mqtt.Client):
    """A client that bounds packets, and whose thread says that it lives: paho calls `loop_misc` about each second."""

    def __init__(self, beat: Beat, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._beat = beat
        self.ended_by = ""
        """Why this end has left the broker, if it has."""
        self.proxy: Proxy | None = None

    def _create_socket_connection(self) -> socket.socket:
        # paho's own way through a proxy needs PySocks, and obeys environment variables.
        if self.proxy is not None:
            made = connect_through(self.proxy, self._host, self._port, CONNECT_TIMEOUT_S)
        else:
            made = socket.create_connection((self._host, self._port), CONNECT_TIMEOUT_S)
        # Without it a PUBACK followed by a small packet waits about 40 ms for a delayed TCP acknowledgement.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def _sock_recv(self, bufsize: int) -> bytes:
        # paho obeys no Maximum Packet Size of its own (MQTT 5.0, 3.1.2.11.4): it would gather what a broker announces.
        if bufsize > MAX_PACKET_BYTES:
            self.ended_by = f"packet-too-large: the broker began a packet of {bufsize} bytes"
            log.warning(
                "the broker sends more than it may",
                extra={"code": PacketTooLargeError.code, "reason": f"{bufsize} bytes, {MAX_PACKET_BYTES} are allowed"},
            )
            raise ConnectionError(self.ended_by)
        return super()._sock_recv(bufsize)

    def loop_misc(self) -> MQTTErrorCode:
        self._beat()
        return super().loop_misc()
