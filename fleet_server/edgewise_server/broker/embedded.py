"""The broker inside the server, for the demo and tests: iotcore (rumqttd) in a child process.

It has no access control and does not ask for client certificates, so it listens on the loopback address and
nowhere else. Nothing of it survives a restart: the bridge notices, and publishes everything again. In production
Mosquitto stands beside the server; see deploy/.
"""

from __future__ import annotations

import ipaddress
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from edgewise_protocol.bounds import MAX_PACKET_BYTES, MIB

from edgewise_server.errors import ServerError, SettingsError

if TYPE_CHECKING:
    from edgewise_server.settings import Settings

READY_S: Final = 15.0
STOP_S: Final = 5.0
_SEGMENT_BYTES: Final = 32 * MIB
"""A filter's log holds `_SEGMENTS` of these; a reader that falls further behind would lose messages."""
_SEGMENTS: Final = 8

_CONFIG: Final = """\
id = 0

[router]
id = 0
max_connections = 10000
max_outgoing_packet_count = 200
max_segment_size = {segment}
max_segment_count = {segments}

[v5.1]
name = "loopback"
listen = "{host}:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = {payload}
max_inflight_count = 100
dynamic_filters = true
"""


class BrokerError(ServerError):
    """The embedded broker cannot be started."""

    code = "broker"


class EmbeddedBroker:
    """Start, stop, and nothing else. A context manager for tests."""

    def __init__(self, settings: Settings) -> None:
        """Check the address.

        Raises:
            SettingsError: the address is not a loopback one.
        """
        self.host, self.port = settings.broker_host, settings.broker_port
        if not _is_loopback(self.host):
            raise SettingsError(
                f"the embedded broker has no access control and listens on a loopback address only, not on {self.host}"
                "; run Mosquitto and set embedded_broker = false"
            )
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._broker: Any = None

    def check(self) -> None:
        """Look whether the port is free, before anything is started.

        Raises:
            BrokerError: it is not.
        """
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_address(self.host).strip("[]"), self.port))
            except OSError as error:
                raise BrokerError(
                    f"the embedded broker cannot listen on {self.host}:{self.port}: {error.strerror}; end the program "
                    "that uses the port (perhaps another edgewise-server), or set another broker_port in server.toml"
                ) from error

    def start(self) -> None:
        """Start the child process, and return once it accepts connections.

        Raises:
            BrokerError: iotcore is not installed, the port is taken, or it was not ready in `READY_S`.
        """
        if self._broker is not None:
            return
        try:
            from iotcore import Broker
        except ImportError as error:
            raise BrokerError("the embedded broker needs the extra: pip install edgewise-server[embedded]") from error
        self._folder = tempfile.TemporaryDirectory(prefix="edgewise-broker-")
        config = Path(self._folder.name) / "broker.toml"
        config.write_text(
            _CONFIG.format(
                host=_address(self.host),
                port=self.port,
                payload=MAX_PACKET_BYTES,
                segment=_SEGMENT_BYTES,
                segments=_SEGMENTS,
            ),
            encoding="utf-8",
        )
        broker = Broker(config_path=str(config))
        try:
            broker.start(timeout=READY_S)
        except (OSError, RuntimeError, ValueError) as error:
            self._folder.cleanup()
            self._folder = None
            raise BrokerError(f"the embedded broker does not start on {self.host}:{self.port}: {error}") from error
        self._broker = broker

    def stop(self) -> None:
        """Stop the child process; safe to call twice."""
        broker, self._broker = self._broker, None
        if broker is not None:
            broker.stop(timeout=STOP_S)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def running(self) -> bool:
        return self._broker is not None and bool(self._broker.is_running)

    def __enter__(self) -> EmbeddedBroker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _address(host: str) -> str:
    return "127.0.0.1" if host == "localhost" else f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
