"""Why a connection came to its end, as far as the device's identity is concerned. Pure.

With TLS 1.3 a broker refuses a client's certificate after the client's side of the handshake is over: what the
client sees is a connection that ends before the broker's CONNACK. So that counts as a refusal too;
whoever acts on it must bear with a broker that was only restarting.
"""

from __future__ import annotations

from typing import Final, Literal

Ending = Literal["refused", "unreachable", "taken-over", "lost"]
SESSION_TAKEN_OVER: Final = 0x8E
"""MQTT 5.0, section 3.14.2.1."""
REFUSALS: Final = frozenset({0x85, 0x86, 0x87, 0x8A, 0x8C})
"""CONNACK reasons that speak of who connects: client id, credentials, not authorised, banned, authentication."""


def classify(*, tls: bool, opened: bool, accepted: bool, connack: int, disconnect: int, tls_failed: bool) -> Ending:
    """Name a connection's end.

    Args:
        tls: the connection was to be protected by TLS.
        opened: a TCP connection was made.
        accepted: the broker's CONNACK was a success.
        connack: reason code of a CONNACK that was a failure; 0 for none.
        disconnect: reason code with which the session ended; 0 for none.
        tls_failed: the handshake failed on this side, as when the broker's certificate is not the fleet's.
    """
    if accepted:
        return "taken-over" if disconnect == SESSION_TAKEN_OVER else "lost"
    if tls_failed or connack in REFUSALS or (tls and opened and not connack):
        return "refused"
    return "unreachable"
