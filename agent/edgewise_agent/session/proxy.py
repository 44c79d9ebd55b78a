"""A TCP connection through an HTTP proxy: one CONNECT request (RFC 9110 section 9.3.6), bounded in time and length.

What goes through it is TLS from this device to the broker; the proxy sees names and lengths.
"""

from __future__ import annotations

import base64
import socket
import time
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from edgewise_agent.errors import ConfigError, ProxyError

MAX_HEAD: Final = 16_384
"""Bytes of a proxy's answer."""
DEFAULT_PORT: Final = 3_128
_PROXY_AUTHENTICATION: Final = 407


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy, and who asks it."""

    host: str
    port: int
    credentials: str = ""
    """`user:password`, or empty."""


def parse_proxy(url: str) -> Proxy | None:
    """A proxy by its URL, `http://[user:password@]host[:port]`; None for an empty one.

    Raises:
        ConfigError: it is not such a URL.
    """
    if not url:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ConfigError(f"proxy_url is not a URL: {error}") from error
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError("proxy_url must be http://[user:password@]host[:port]")
    named = parts.username is not None
    credentials = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}" if named else ""
    if any(ord(character) < 32 for character in credentials):
        raise ConfigError("proxy_url holds a control character")
    return Proxy(parts.hostname, port, credentials)


def connect_through(proxy: Proxy, host: str, port: int, timeout_s: float) -> socket.socket:
    """A connection to `host` and `port` that the proxy carries.

    Raises:
        ProxyError: the proxy cannot be reached, or refuses; the message says which.
    """
    deadline = time.monotonic() + timeout_s
    try:
        made = socket.create_connection((proxy.host, proxy.port), timeout_s)
    except OSError as error:
        raise ProxyError(f"the proxy {proxy.host}:{proxy.port} cannot be reached: {error}") from error
    try:
        made.sendall(request(proxy, host, port))
        check_answer(_read_head(made, deadline), proxy, host, port)
        made.settimeout(timeout_s)
    except OSError as error:
        made.close()
        raise ProxyError(f"the proxy {proxy.host}:{proxy.port} does not answer: {error}") from error
    except ProxyError:
        made.close()
        raise
    return made


def request(proxy: Proxy, host: str, port: int) -> bytes:
    """The CONNECT request."""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.credentials:
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(proxy.credentials.encode()).decode()}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def check_answer(head: bytes, proxy: Proxy, host: str, port: int) -> None:
    """Raise `ProxyError` unless the proxy's answer is a success."""
    first = head.split(b"\r\n", 1)[0].decode("ascii", "replace")
    version, _, rest = first.partition(" ")
    status = rest[:3]
    if not version.startswith("HTTP/1.") or not status.isdigit():
        raise ProxyError(f"{proxy.host}:{proxy.port} does not answer as an HTTP proxy: look at proxy_url")
    if int(status) == _PROXY_AUTHENTICATION:
        raise ProxyError(f"the proxy {proxy.host}:{proxy.port} wants a user and a password: put them into proxy_url")
    if not 200 <= int(status) < 300:
        raise ProxyError(
            f"the proxy {proxy.host}:{proxy.port} refuses {host}:{port} ({first[:80]}): many allow port 443 only"
        )


def _read_head(connection: socket.socket, deadline: float) -> bytes:
    """Byte by byte, since what follows the head belongs to TLS."""
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(left)
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError("it closed the connection")
        head += byte
        if len(head) > MAX_HEAD:
            raise ProxyError(f"the proxy's answer has more than {MAX_HEAD} bytes")
    return bytes(head)
