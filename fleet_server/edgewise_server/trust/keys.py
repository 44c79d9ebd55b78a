"""The online keys: made once, kept in the state folder with mode 0600, never logged.

`snapshot`, `timestamp` and `director` are Ed25519 TUF keys. Their theft permits what
docs/architecture.md says, and no new bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
NEXT_FOLDER: Final = "next"
"""Below the folder of keys: those that a rotation made and the offline keys have not put into force yet."""


Private = Mapping[str, tuple[Ed25519PrivateKey, ...]]


class OnlineKeys:
    """Private keys of the online roles, the newest first; thread-safe.

    A role has two keys while a rotation is under way: which one signs, the trusted metadata say.
    So a new key comes into force with the metadata that name it, in every process, and no
    file has to be swapped at the same instant.

    Args:
        private: keys by role.
        reload: reads them again, where a rotation may have been begun by another process.
    """

    def __init__(self, private: Private, reload: Callable[[], Private] | None = None) -> None:
        self._private = private
        self._reload = reload

    def public(self, role: str) -> SSlibKey:
        """The newest public key of a role, with securesystemslib's key id."""
        return SSlibKey.from_crypto(self._private[role][0].public_key())

    def describe(self) -> dict[str, Any]:
        """Public keys as TUF key dicts by role, and `keyids`."""
        keys = {role: self.public(role) for role in ONLINE_ROLES}
        return {role: key.to_dict() for role, key in keys.items()} | {"keyids": {r: k.keyid for r, k in keys.items()}}

    def find(self, role: str, trusted: Iterable[Key]) -> Key:
        """The trusted key that is ours: a ceremony may have given it another key id.

        Raises:
            OnlineKeyError: none of them is.
        """
        named = list(trusted)
        for again in (False, True):
            if again and not self.refresh():
                break
            for key in named:
                if self._private_of(role, key) is not None:
                    return key
        raise OnlineKeyError(f"the metadata do not give the role {role} to this server's key")

    def refresh(self) -> bool:
        """Read the keys again; returns whether that could be done."""
        if self._reload is None:
            return False
        self._private = self._reload()
        return True

    def owns(self, key: Key) -> bool:
        """Whether a key is one of these."""
        return any(self._private_of(role, key) is not None for role in ONLINE_ROLES)

    def _private_of(self, role: str, key: Key) -> Ed25519PrivateKey | None:
        for private in self._private[role]:
            if same_key(key, SSlibKey.from_crypto(private.public_key())):
                return private
        return None

    def sign(self, role: str, key: Key, metadata: Metadata[Any]) -> None:
        """Sign as `role`, under the key id of `key`, replacing other signatures."""
        if not isinstance(key, SSlibKey):
            raise OnlineKeyError(f"the key of {role} is of an unknown kind")
        private = self._private_of(role, key)
        if private is None:
            raise OnlineKeyError(f"the private key of {role} is not on this server")
        metadata.sign(CryptoSigner(private, key))


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
        make_key(folder, role)
    return load_keys(folder)


def make_key(folder: Path, role: str) -> None:
    """Make the key of a role, if it is missing."""
    if not key_path(folder, role).exists():
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_atomic(key_path(folder, role), pem, 0o600)


def load_keys(folder: Path) -> OnlineKeys:
    """Load the online keys.

    Raises:
        SettingsError: one is missing, unreadable, or readable by others.
    """
    return OnlineKeys(_load(folder), lambda: _load(folder))


def _load(folder: Path) -> Private:
    private: dict[str, tuple[Ed25519PrivateKey, ...]] = {}
    for role in ONLINE_ROLES:
        paths = [key_path(folder / NEXT_FOLDER, role), key_path(folder, role)]
        found: list[Ed25519PrivateKey] = []
        for path in paths if paths[0].exists() else paths[1:]:
            key = load_private(path)
            if not isinstance(key, Ed25519PrivateKey):
                raise SettingsError(f"{path} is not an Ed25519 key")
            found.append(key)
        private[role] = tuple(found)
    return private


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
