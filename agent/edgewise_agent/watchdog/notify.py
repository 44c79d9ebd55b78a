"""sd_notify(3): messages to the service manager over the datagram socket that `$NOTIFY_SOCKET` names.

The protocol is that of systemd's manual page sd_notify(3): newline-separated `NAME=value`
assignments in one datagram. Paths and abstract sockets (`@name`) are spoken to; without the
variable, nobody listens and nothing is sent.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import Final

log = logging.getLogger(__name__)

_MAX_STATUS_CHARS: Final = 200
_SEND_TIMEOUT_S: Final = 1.0
"""A service manager that does not read must not hold up the agent."""


class Notifier:
    """Args:
    address: value of `$NOTIFY_SOCKET`; empty where no service manager listens.
    """

    def __init__(self, address: str) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        if address and address[0] not in "/@":
            log.warning("the service manager's socket is of a kind that is not spoken", extra={"address": address})
            self._address = ""

    def ready(self) -> None:
        """The service is up: it serves."""
        self._send("READY=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Keep the watchdog of the service manager from biting."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={' '.join(text.split())[:_MAX_STATUS_CHARS]}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(_SEND_TIMEOUT_S)
                sock.sendto(message.encode(), self._address)
        except OSError as error:
            log.warning("the service manager cannot be told", extra={"message_sent": message, "reason": str(error)})


def watchdog_s(environ: Mapping[str, str], pid: int) -> float:
    """The service manager's watchdog time in seconds, or 0 where it has none for this process.

    As sd_watchdog_enabled(3): `$WATCHDOG_USEC` counts only where `$WATCHDOG_PID` is absent or this process.
    """
    text = environ.get("WATCHDOG_USEC", "")
    meant = environ.get("WATCHDOG_PID", "")
    if not text.isascii() or not text.isdigit() or (meant and meant != str(pid)):
        return 0.0
    return int(text[:18]) / 1e6
