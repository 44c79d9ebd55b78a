"""A folder of keys: `keys.json` names them, `*.pem` hold the private ones, `root.json` is the trust anchor.

    KEYS/offline/   root, targets, the fleet's CA; kept away from every server
    KEYS/worker/    auto/<channel> and rounds; taken to the worker's machine
    KEYS/ceremony.json, KEYS/channels...: public

A key whose private part is elsewhere stands in `keys.json` too: a second signer's folder
holds the same index and another PEM file. `uri` is `pem:NAME` (a file beside the index,
with an optional passphrase from EDGEWISE_KEY_PASSPHRASE) or any signer URI that
securesystemslib knows (file2, hsm, a KMS).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.exceptions import Error as SecuresystemslibError
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey

from edgewise_cli import files
from edgewise_cli.errors import FilesError, TrustError, UsageError

INDEX: Final = "keys.json"
ROOT: Final = "root.json"
PASSPHRASE: Final = "EDGEWISE_KEY_PASSPHRASE"  # noqa: S105 - the variable's name
_PEM: Final = "pem:"


@dataclass(frozen=True)
class KeyEntry:
    """One key of the index."""

    name: str
    role: str
    uri: str
    public: Key


@dataclass
class KeyFolder:
    """The index of one folder."""

    path: Path
    entries: list[KeyEntry] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> KeyFolder:
        """Read a folder's index."""
        document = files.read_json(path / INDEX)
        try:
            entries = [
                KeyEntry(k["name"], k["role"], k["uri"], Key.from_dict(k["keyid"], dict(k["public"])))
                for k in document["keys"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise FilesError(f"{path / INDEX} is not a key index: {error}") from error
        return cls(path, entries)

    def save(self) -> None:
        """Write the index."""
        files.write_json(
            self.path / INDEX,
            {
                "spec_version": "1.0",
                "keys": [
                    {
                        "name": e.name,
                        "role": e.role,
                        "uri": e.uri,
                        "keyid": e.public.keyid,
                        "public": e.public.to_dict(),
                    }
                    for e in self.entries
                ],
            },
        )

    def add(self, name: str, role: str) -> KeyEntry:
        """Make an Ed25519 key in this folder; the index is not saved."""
        private = ed25519.Ed25519PrivateKey.generate()
        write_private(self.path / f"{name}.pem", private)
        entry = KeyEntry(name, role, f"{_PEM}{name}.pem", SSlibKey.from_crypto(private.public_key()))
        self.entries.append(entry)
        return entry

    def of_role(self, role: str) -> list[KeyEntry]:
        """The keys of one role."""
        return [e for e in self.entries if e.role == role]

    def available(self, entry: KeyEntry) -> bool:
        """Whether the private part can be asked for here."""
        return not entry.uri.startswith(_PEM) or (self.path / entry.uri.removeprefix(_PEM)).exists()

    def signer(self, entry: KeyEntry) -> Signer:
        """The signer of a key.

        Raises:
            TrustError: the private key is not the one of the index.
            FilesError, UsageError: it cannot be loaded.
        """
        if entry.uri.startswith(_PEM):
            private = read_private(self.path / entry.uri.removeprefix(_PEM))
            try:
                return CryptoSigner(private, _crypto_key(entry.public))
            except (ValueError, SecuresystemslibError) as error:
                raise TrustError(f"{entry.name}: the private key is not the one of the index: {error}") from error
        return signer_of(entry.uri, entry.public)

    def signers(self, role: str, names: tuple[str, ...] = ()) -> list[Signer]:
        """The signers of a role whose private parts are here, or of the keys that are named.

        Raises:
            UsageError: none is here, or a named one is not of the role.
        """
        entries = self.of_role(role)
        if names:
            known = {e.name: e for e in entries}
            if unknown := [n for n in names if n not in known]:
                raise UsageError(f"{unknown[0]!r} is not a key of {role}; known: {', '.join(known) or 'none'}")
            entries = [known[n] for n in names]
        else:
            entries = [e for e in entries if self.available(e)]
        if not entries:
            raise UsageError(f"{self.path} holds no private key of the role {role}")
        return [self.signer(e) for e in entries]

    def root(self) -> bytes:
        """The trust anchor: root metadata that this operator's ceremony made."""
        return files.read(self.path / ROOT)


def open_folder(path: Path, part: str) -> KeyFolder:
    """The key folder at `path`, or its `part` (offline, worker) where `path` holds both."""
    if (path / INDEX).exists():
        return KeyFolder.load(path)
    if (path / part / INDEX).exists():
        return KeyFolder.load(path / part)
    raise UsageError(f"{path} holds no keys: run `edgewise keys init {path}` or name the right folder")


def signer_of(uri: str, public: Key) -> Signer:
    """The signer of a securesystemslib URI."""
    try:
        return Signer.from_priv_key_uri(uri, public)
    except (ValueError, OSError, ImportError, SecuresystemslibError) as error:
        raise TrustError(f"the signer {uri.split('?')[0]!r} cannot be used: {error}") from error


def write_private(path: Path, private: Any, environ: Mapping[str, str] = os.environ) -> None:
    """Write a private key as PKCS#8 PEM, mode 0600, encrypted where a passphrase is set."""
    passphrase = environ.get(PASSPHRASE, "")
    protect: KeySerializationEncryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    files.write(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protect), secret=True)


def read_private(path: Path, environ: Mapping[str, str] = os.environ) -> PrivateKeyTypes:
    """Read a private key that `write_private` wrote.

    Raises:
        UsageError: it is encrypted, and the passphrase is missing or wrong.
    """
    data = files.read(path, 64 * 1024)
    passphrase = environ.get(PASSPHRASE, "")
    encrypted = b"ENCRYPTED" in data
    if encrypted and not passphrase:
        raise UsageError(f"{path} is protected: set {PASSPHRASE}")
    try:
        return load_pem_private_key(data, passphrase.encode() if encrypted else None)
    except ValueError as error:
        raise UsageError(f"{path} cannot be opened: wrong passphrase, or not a PEM private key") from error


def _crypto_key(public: Key) -> SSlibKey:
    if not isinstance(public, SSlibKey):
        raise UsageError(f"a PEM file cannot hold a key of type {public.keytype!r}")
    return public
