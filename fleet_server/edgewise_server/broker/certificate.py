"""`edgewise-server certificate`: a server's certificate from the fleet's CA, for HTTPS or a broker elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgewise_server.db import Database
from edgewise_server.errors import SettingsError
from edgewise_server.files import write_atomic
from edgewise_server.models.base import utc_now
from edgewise_server.pki.authority import load_authority
from edgewise_server.schema import upgrade
from edgewise_server.services import audit, identity
from edgewise_server.settings import Settings

CERTIFICATE_FILE = "certificate.pem"
KEY_FILE = "key.pem"
AUTHORITY_FILE = "ca.pem"
MAX_DAYS = 825


def make_certificate(settings: Settings, hosts: Sequence[str], folder: Path, days: float) -> list[str]:
    """Write certificate, key and fleet CA to a folder; returns what to tell.

    Raises:
        NoTrustError: before the ceremony. InvalidError: a host is neither a name nor an address.
        SettingsError: the folder cannot be written, or the life is not acceptable.
    """
    if not 0 < days <= MAX_DAYS:
        raise SettingsError(f"a server's certificate lives up to {MAX_DAYS} days, not {days:g}")
    authority = load_authority(settings.state / "keys")
    database = Database(settings.url)
    try:
        upgrade(database)
        with database.session() as session:
            ca = identity.fleet_ca(session)
            made = authority.issue_server(ca.intermediate_pem, hosts=hosts, now=utc_now(), days=days)
            audit.record(session, "console", "certificate.issue", hosts[0], {"hosts": list(hosts)})
    finally:
        database.close()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # the key first: until its certificate is there too, a server that starts refuses the pair
        write_atomic(folder / KEY_FILE, made.key_pem.encode(), 0o600)
        write_atomic(folder / CERTIFICATE_FILE, made.chain_pem.encode())
        write_atomic(folder / AUTHORITY_FILE, ca.root_pem.encode())
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error}") from error
    return [
        f"certificate    {folder / CERTIFICATE_FILE}   ({', '.join(hosts)}; {days:g} days)",
        f"key            {folder / KEY_FILE}",
        f"fleet CA       {folder / AUTHORITY_FILE}   (give it to `edgewise --ca-file`)",
    ]
