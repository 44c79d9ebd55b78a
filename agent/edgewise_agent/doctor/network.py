"""Whether the server and the broker can be reached, and if not, at which step it ends.

A running agent holds the broker's one session of this device: the doctor then goes as far as
TLS, and never says CONNECT, which would throw the agent out.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from edgewise_agent.doctor.check import Check, fail, ok, warn
from edgewise_agent.doctor.greeting import greet
from edgewise_agent.errors import AgentError, ProxyError
from edgewise_agent.session.proxy import connect_through
from edgewise_agent.session.shell import Endpoint

TIMEOUT_S: Final = 5.0
_ALERT_WAIT_S: Final = 1.0
"""With TLS 1.3 a server refuses the client's certificate after the handshake is over for the client."""
HEALTH: Final = "/api/v1/health"

Step = Literal["name", "proxy", "connection", "tls", "answer", "done"]


@dataclass(frozen=True)
class Reach:
    """How far a try to reach something went."""

    where: str
    ended: Step
    why: str = ""
    said: str = ""
    """What it answered, where it did."""


def reach_broker(endpoint: Endpoint, *, say_connect: bool) -> Reach:
    """Try each step towards the broker in turn."""
    where = f"{endpoint.host}:{endpoint.port}"
    try:
        sock = (
            connect_through(endpoint.proxy, endpoint.host, endpoint.port, TIMEOUT_S)
            if endpoint.proxy is not None
            else _connect(endpoint.host, endpoint.port)
        )
    except ProxyError as error:
        return Reach(where, "proxy", str(error))
    except socket.gaierror as error:
        return Reach(where, "name", error.strerror or str(error))
    except OSError as error:
        return Reach(where, "connection", _refusal(error))
    with contextlib.closing(sock):
        if endpoint.tls is not None:
            try:
                sock = endpoint.tls.wrap_socket(sock, server_hostname=endpoint.host)
                _await_alert(sock)
            except OSError as error:
                return Reach(where, "tls", tls_words(error))
        if not say_connect:
            return Reach(where, "done")
        if endpoint.transport == "websockets":
            return Reach(where, "done", said="speaks TLS; the MQTT greeting is not tried over WebSocket")
        try:
            said = greet(sock, endpoint.device_id, TIMEOUT_S)
        except (OSError, ValueError) as error:
            return Reach(where, "answer", tls_words(error) if isinstance(error, ssl.SSLError) else str(error))
        return Reach(where, "done" if said == "" else "answer", said)


def reach_server(url: str, fleet_ca: str) -> Reach:
    """Ask the server for its health, trusting the fleet's root and the system's authorities."""
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    where = url
    try:
        port = parts.port or (443 if secure else 80)
        sock = _connect(host, port)
    except socket.gaierror as error:
        return Reach(where, "name", error.strerror or str(error))
    except (OSError, ValueError) as error:
        return Reach(where, "connection", _refusal(error) if isinstance(error, OSError) else str(error))
    with contextlib.closing(sock):
        if secure:
            try:
                context = ssl.create_default_context(cadata=fleet_ca or None)
                sock = context.wrap_socket(sock, server_hostname=host)
            except (OSError, ValueError) as error:
                return Reach(where, "tls", tls_words(error))
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        connection.sock = sock
        try:
            connection.request("GET", parts.path.rstrip("/") + HEALTH, headers={"Connection": "close"})
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            return Reach(where, "answer", f"{type(error).__name__}: {error}")
    if status >= 500:
        return Reach(where, "answer", f"HTTP status {status}")
    return Reach(where, "done", said=f"HTTP status {status}")


def _connect(host: str, port: int) -> socket.socket:
    return socket.create_connection((host, port), TIMEOUT_S)


def _await_alert(sock: ssl.SSLSocket) -> None:
    """Raise `ssl.SSLError` if the server refuses the certificate now; a server that only waits is well."""
    sock.settimeout(_ALERT_WAIT_S)
    try:
        if sock.recv(1) == b"":
            raise ssl.SSLError("the broker closed the connection after the handshake")
    except TimeoutError:
        pass
    finally:
        sock.settimeout(TIMEOUT_S)


def _refusal(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there (connection refused)"
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    return error.strerror or str(error)


_ALERTS: Final[tuple[tuple[str, str], ...]] = (
    ("ALERT_CERTIFICATE_REVOKED", "it says that this device's certificate is revoked"),
    ("ALERT_CERTIFICATE_EXPIRED", "it says that this device's certificate has expired"),
    ("ALERT_UNKNOWN_CA", "it does not trust this device's certificate: it is of another fleet, or of an old authority"),
    ("ALERT_BAD_CERTIFICATE", "it does not accept this device's certificate"),
    ("ALERT_CERTIFICATE_UNKNOWN", "it does not accept this device's certificate"),
    ("ALERT_HANDSHAKE_FAILURE", "it does not agree on how to encrypt, or misses a certificate"),
    ("CERTIFICATE_REQUIRED", "it wants a certificate, and this device sent none"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS on this port"),
    ("RECORD_LAYER_FAILURE", "it does not speak TLS on this port"),
)


def tls_words(error: Exception) -> str:
    """Why a TLS handshake failed, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    reason = getattr(error, "reason", "") or str(error)
    words = next((words for part, words in _ALERTS if part in str(reason).upper().replace(" ", "_")), "")
    return words or f"the TLS handshake failed: {reason}"


_MENDS: Final[dict[Step, str]] = {
    "name": "check the device's DNS (`getent hosts NAME`) and the name itself",
    "proxy": "correct proxy_url in agent.toml, or the proxy's rules",
    "connection": "see that it runs, and that no firewall stands between",
    "tls": "check the clock; then the certificates: the server's must come from the fleet's root and name this address",
    "answer": "look at its log",
    "done": "",
}


def judge_reach(name: str, reach: Reach | AgentError, *, running_online: bool = False) -> Check:
    """Pure."""
    if isinstance(reach, AgentError):
        return fail(name, str(reach), code=reach.code)
    step = {
        "name": "its name cannot be resolved",
        "proxy": "the proxy is in the way",
        "connection": "it cannot be connected to",
        "tls": "TLS fails",
        "answer": "it does not answer as it must",
        "done": "",
    }[reach.ended]
    if reach.ended != "done":
        text = f"{reach.where}: {step}: {reach.why}"
        if "revoked" in reach.why:
            return fail(name, text, code="device-revoked")
        found = warn if name == "server" else fail
        return found(name, text, _MENDS[reach.ended], "server-unreachable" if name == "server" else "offline")
    if running_online:
        return ok(name, f"{reach.where}: the running agent is connected to it")
    return ok(name, f"{reach.where} can be reached" + (f" ({reach.said})" if reach.said else ""))
