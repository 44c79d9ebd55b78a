"""Errors of the bridge."""

from __future__ import annotations

from edgewise_server.errors import ServerError


class BridgeError(ServerError):
    """The broker cannot be reached, refuses us, or does not answer in time."""

    code = "bridge"
