"""TLS on both sides of the gateway: who may come in, and as whom it speaks to the broker."""

from __future__ import annotations

import ssl
import tempfile
from collections import OrderedDict
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from edgewise_server.broker.mosquitto import BROKER_FILE, CA_FILE, CRL_FILE, SERVER_USER
from edgewise_server.models.base import utc_now
from edgewise_server.pki.authority import Authority
from edgewise_server.settings import Settings

LIFE: Final = timedelta(hours=24)
"""Life of a certificate under a device's name, which never leaves this process."""
_MAX_KEPT: Final = 2_000


class GatewayTls:
    """Not shared between threads."""

    def __init__(self, settings: Settings, authority: Authority) -> None:
        self._folder = settings.broker_files
        self._authority = authority
        self._stamp: tuple[int, ...] = ()
        self._inner: ssl.SSLContext | None = None
        self._kept: OrderedDict[str, tuple[float, ssl.SSLContext]] = OrderedDict()

    def for_devices(self) -> ssl.SSLContext:
        """What a device's connection is held against, by the files as they are now: certificate and revocation list.

        Raises:
            OSError, ssl.SSLError: the ceremony has not been installed yet, or a file is damaged.
        """
        names = (CA_FILE, BROKER_FILE, CRL_FILE)
        stamp = tuple((self._folder / name).stat().st_mtime_ns for name in names)
        if self._inner is None or stamp != self._stamp:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self._folder / CA_FILE)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._folder / CRL_FILE)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
            context.load_cert_chain(self._folder / BROKER_FILE)
            context.num_tickets = 0  # a resumed session would not be held against the list again
            self._inner, self._stamp = context, stamp
            self._kept.clear()
        return self._inner

    def as_device(self, device_id: str) -> ssl.SSLContext:
        """A client's TLS context under a device's name, by a certificate that is made for it here."""
        now = utc_now()
        kept = self._kept.get(device_id)
        if kept is not None and kept[0] > now.timestamp():
            self._kept.move_to_end(device_id)
            return kept[1]
        *roots, intermediate = x509.load_pem_x509_certificates((self._folder / CA_FILE).read_bytes())
        intermediate_pem = intermediate.public_bytes(Encoding.PEM).decode()
        days = LIFE / timedelta(days=1)
        made = self._authority.issue_client(intermediate_pem, name=device_id, now=now, days=days)
        context = ssl.create_default_context(
            ssl.Purpose.SERVER_AUTH, cadata="".join(root.public_bytes(Encoding.PEM).decode() for root in roots)
        )
        # `ssl` reads a certificate from a file only.
        with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
            path = Path(folder) / "client.pem"
            path.touch(0o600)
            path.write_bytes(made.bundle)
            context.load_cert_chain(path)
        self._kept[device_id] = ((now + LIFE / 2).timestamp(), context)
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return context


def device_of(certificate: dict[str, Any] | None) -> str:
    """The device id of a verified peer certificate; empty where it names none, or the server."""
    subject = (certificate or {}).get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]
    return str(names[0]) if len(names) == 1 and names[0] != SERVER_USER else ""
