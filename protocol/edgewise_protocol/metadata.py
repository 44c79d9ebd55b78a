"""TUF metadata as documents: bytes in, checked values out. No I/O.

One place knows which of python-tuf's exceptions mean "this is not metadata" and "this is not
signed as it must be"; everybody who takes metadata from outside goes through it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization.json import JSONSerializer

from edgewise_protocol.errors import MalformedError, SignatureError

NOT_METADATA: Final = (RepositoryError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What python-tuf raises for bytes or objects that are not metadata."""


def encode_metadata(metadata: Metadata[Any]) -> bytes:
    """Compact JSON of TUF metadata."""
    return metadata.to_bytes(JSONSerializer(compact=True))


def parse_targets(data: bytes, limit: int, what: str) -> Metadata[Targets]:
    """Parse bounded Targets metadata.

    Raises:
        MalformedError: longer than `limit` bytes, not JSON, or not Targets metadata.
    """
    if len(data) > limit:
        raise MalformedError(f"the {what} has {len(data)} bytes; at most {limit} are allowed")
    try:
        metadata: Metadata[Targets] = Metadata.from_bytes(data)
    except NOT_METADATA as error:
        raise MalformedError(f"the {what} is not TUF metadata: {error}") from error
    if not isinstance(metadata.signed, Targets):
        raise MalformedError(f"the {what} is TUF {metadata.signed.type!r} metadata, not targets")
    return metadata


def keys_digest(parent: Root | Targets, role: str) -> str:
    """SHA-256 over the keys and the threshold that `parent` demands of `role`; of none for an unknown role.

    What a device has accepted of a role is remembered together with this digest, and forgotten
    when it changes: a stolen key's last word must not bind those that take its place
    (fast-forward recovery, TUF 1.0.33, section 5.3.11).
    """
    try:
        delegated = parent.get_delegated_role(role)
        keys = [parent.get_key(keyid) for keyid in delegated.keyids]
    except ValueError:
        return hashlib.sha256(b"[]").hexdigest()
    said = sorted([key.keytype, key.scheme, json.dumps(key.keyval, sort_keys=True)] for key in keys)
    return hashlib.sha256(json.dumps([delegated.threshold, said]).encode()).hexdigest()


def check_signed(parent: Root | Targets, role: str, metadata: Metadata[Any]) -> None:
    """Hold metadata against the keys and the threshold that `parent` demands of `role`.

    Raises:
        SignatureError: too few valid signatures, no such delegation, or a content that has no
            canonical form and so cannot have been signed (a float, say).
    """
    try:
        parent.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except RepositoryError as error:
        raise SignatureError(f"the {role} metadata are not signed as they must be: {error}") from error
    except ValueError as error:
        raise SignatureError(f"no trusted metadata delegate to the role {role!r}") from error
