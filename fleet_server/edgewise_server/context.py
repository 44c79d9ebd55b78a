"""What the roles of the server share: made once by the composition root, handed to each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from edgewise_server.blobs.store import BlobStore
from edgewise_server.broker.publication import BrokerFiles
from edgewise_server.db import Database
from edgewise_server.files import write_atomic
from edgewise_server.models.base import utc_now
from edgewise_server.pki.authority import Authority, load_authority
from edgewise_server.services import identity
from edgewise_server.services.director import Director
from edgewise_server.services.repository import Repository
from edgewise_server.settings import Settings
from edgewise_server.trust.keys import OnlineKeys, load_keys

KEYS_FOLDER: Final = "keys"
BLOBS_FOLDER: Final = "blobs"
UPLOADS_FOLDER: Final = "uploads"
"""Updates of federated rounds on their way in."""
ONLINE_FILE: Final = "online.json"
CRL_FILE: Final = "crl.pem"
ADMIN_TOKEN_FILE: Final = "admin.token"  # noqa: S105 - a file name


@dataclass(frozen=True)
class Context:
    """Threads may share it."""

    settings: Settings
    database: Database
    blobs: BlobStore
    keys: OnlineKeys
    authority: Authority
    repository: Repository
    director: Director

    def refresh_crl(self, *, force: bool = False) -> bool:
        """Sign a new revocation list if it is due, and lay it where the broker reads it; returns whether."""
        with self.database.session() as session:
            pem = identity.renew_crl(session, self.authority, now=utc_now(), days=self.settings.crl_days, force=force)
        if pem is not None:
            write_atomic(self.settings.state / CRL_FILE, pem.encode())
            self.refresh_broker()
        return pem is not None

    def refresh_broker(self, *, thorough: bool = False) -> list[str]:
        """Bring what a managed Mosquitto reads up to date; returns what was written."""
        if not self.settings.broker_managed:
            return []
        return BrokerFiles(self.settings, self.database, self.authority).look(utc_now(), thorough=thorough)

    def close(self) -> None:
        """Close the database's connections."""
        self.database.close()


def online_description(keys: OnlineKeys, authority: Authority) -> dict[str, Any]:
    """What the key ceremony needs of this server: public keys and the CSR; the content of `online.json`."""
    return keys.describe() | {"intermediate_csr_pem": authority.csr_pem()}


def open_context(settings: Settings) -> Context:
    """Open database, store and keys of an initialized state folder.

    Raises:
        SettingsError: a key is missing or unusable.
    """
    keys = load_keys(settings.state / KEYS_FOLDER)
    authority = load_authority(settings.state / KEYS_FOLDER)
    database = Database(settings.url)
    blobs = BlobStore(settings.state / BLOBS_FOLDER)
    repository = Repository(settings, database, blobs, keys, authority)
    return Context(
        settings=settings,
        database=database,
        blobs=blobs,
        keys=keys,
        authority=authority,
        repository=repository,
        director=Director(settings, repository, keys),
    )
