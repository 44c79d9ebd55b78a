"""Serves the API over HTTP or HTTPS, on a port that is known to be free before anything else starts."""

from __future__ import annotations

import logging
import signal
import socket
import ssl
import threading
from pathlib import Path
from typing import Any, Final

import uvicorn

from edgewise_server.errors import PortError, SettingsError
from edgewise_server.settings import Settings

logger = logging.getLogger(__name__)

SHUTDOWN_S: Final = 10
ENDING: Final = (signal.SIGINT, signal.SIGTERM)
CERTIFICATE_LOOK_S: Final = 60.0


def serve(app: Any, settings: Settings) -> bool:
    """Serve until SIGINT or SIGTERM; returns whether it had begun.

    Raises:
        PortError: the port is taken, or not ours to take. SettingsError: the certificate cannot be used.
    """
    listening = bind(settings.http_host, settings.http_port)
    try:
        config = uvicorn.Config(
            app,
            host=settings.http_host,
            port=settings.http_port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
            ssl_certfile=settings.http_certificate_file,
            ssl_keyfile=settings.http_key_file,
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"the certificate of the API cannot be used: {error}") from error
        server = uvicorn.Server(config)
        for number in ENDING:
            # uvicorn raises the signal again once it has shut down; our own end follows then
            signal.signal(number, lambda *_: None)
        watch = CertificateWatch(settings, config.ssl)
        watch.start()
        try:
            server.run(sockets=[listening])
        finally:
            watch.stop()
        return server.started
    finally:
        listening.close()


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address; it does not listen yet.

    Raises:
        PortError: why not, and what to do.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, number)
    except OSError as error:
        raise PortError(f"the address {host} cannot be listened on: {error.strerror}; give another --host") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.set_inheritable(True)
    except OSError as error:
        made.close()
        raise PortError(
            f"{host}:{port} cannot be listened on: {error.strerror}; end the program that uses the port "
            "(perhaps another edgewise-server), or choose another one with --port or http_port in server.toml"
        ) from error
    return made


class CertificateWatch:
    """Loads the API's certificate again when its file has changed, so that a renewal needs no restart."""

    def __init__(self, settings: Settings, context: ssl.SSLContext | None) -> None:
        self._certificate, self._key = settings.http_certificate_file, settings.http_key_file
        self._context = context
        self._seen = _stamp(self._certificate, self._key)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="certificate", daemon=True)

    def start(self) -> None:
        if self._context is not None:
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(CERTIFICATE_LOOK_S)

    def look(self) -> bool:
        """Load what has changed; returns whether it did."""
        now = _stamp(self._certificate, self._key)
        if self._context is None or self._certificate is None or now == self._seen:
            return False
        try:
            self._context.load_cert_chain(self._certificate, self._key)
        except (OSError, ssl.SSLError) as error:
            logger.warning("the new certificate of the API cannot be used, the old one stays: %s", error)
            return False
        self._seen = now
        logger.info("the API has a new certificate")
        return True

    def _run(self) -> None:
        while not self._stop.wait(CERTIFICATE_LOOK_S):
            self.look()


def _stamp(*paths: Path | None) -> tuple[int, ...]:
    """Modification times; 0 for a file that is not there."""
    return tuple(path.stat().st_mtime_ns if path is not None and path.exists() else 0 for path in paths)
