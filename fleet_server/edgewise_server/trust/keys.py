"""The online keys: made once, kept in the state folder with mode 0600, never logged.

`snapshot`, `timestamp` and `director` are Ed25519 TUF keys. Their theft permits what
docs/architecture.md says, and no new bundle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key, SSlibKey
from tuf.api.metadata import Metadata

from edgewise_server.errors import OnlineKeyError, SettingsError
from edgewise_server.files import write_atomic

ONLINE_ROLES: Final = ("snapshot", "timestamp", "director")


@dataclass(frozen=True, repr=False)
class OnlineKeys:
    """Private keys of the online roles."""

    private: Mapping[str, Ed25519PrivateKey]

    def public(self, role: str) -> SSlibKey:
        """The public key of a role, with securesystemslib's key id."""
        return SSlibKey.from_crypto(self.private[role].public_key())

    def describe(self) -> dict[str, Any]:
        """Public keys as TUF key dicts by role, and `keyids`."""
        keys = {role: self.public(role) for role in ONLINE_ROLES}
        return {role: key.to_dict() for role, key in keys.items()} | {"keyids": {r: k.keyid for r, k in keys.items()}}

    def find(self, role: str, trusted: Iterable[Key]) -> Key:
        """The trusted key that is ours: a ceremony may have given it another key id.

        Raises:
            OnlineKeyError: none of them is.
        """
        ours = self.public(role)
        for key in trusted:
            if same_key(key, ours):
                return key
        raise OnlineKeyError(f"the metadata do not give the role {role} to this server's key")

    def owns(self, key: Key) -> bool:
        """Whether a key is one of these."""
        return any(same_key(key, self.public(role)) for role in ONLINE_ROLES)

    def sign(self, role: str, key: Key, metadata: Metadata[Any]) -> None:
        """Sign as `role`, under the key id of `key`, replacing other signatures."""
        if not isinstance(key, SSlibKey):
            raise OnlineKeyError(f"the key of {role} is of an unknown kind")
        metadata.sign(CryptoSigner(self.private[role], key))


def same_key(a: Key, b: Key) -> bool:
    """Whether two keys verify the same signatures, whatever their ids."""
    return (a.keytype, a.scheme, a.keyval.get("public")) == (b.keytype, b.scheme, b.keyval.get("public"))


def key_path(folder: Path, role: str) -> Path:
    """Where a private key lies."""
    return folder / f"{role}.pem"


def create_keys(folder: Path) -> OnlineKeys:
    """Make the keys that are missing, and load all."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for role in ONLINE_ROLES:
        if not key_path(folder, role).exists():
            pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_atomic(key_path(folder, role), pem, 0o600)
    return load_keys(folder)


def load_keys(folder: Path) -> OnlineKeys:
    """Load the online keys.

    Raises:
        SettingsError: one is missing, unreadable, or readable by others.
    """
    private: dict[str, Ed25519PrivateKey] = {}
    for role in ONLINE_ROLES:
        key = load_private(key_path(folder, role))
        if not isinstance(key, Ed25519PrivateKey):
            raise SettingsError(f"{key_path(folder, role)} is not an Ed25519 key")
        private[role] = key
    return OnlineKeys(private)


def load_private(path: Path) -> object:
    """Load a PEM private key that nobody else may read.

    Raises:
        SettingsError: it is missing, damaged, or its mode is too open.
    """
    try:
        mode = path.stat().st_mode
        pem = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"the key {path} cannot be read; run `edgewise-server init`: {error.strerror}") from error
    if mode & 0o077:
        raise SettingsError(f"the key {path} is readable by others: chmod 600 it, and consider it stolen if it was so")
    try:
        return load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"the key {path} is damaged") from error
