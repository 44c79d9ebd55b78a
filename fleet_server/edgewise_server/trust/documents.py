"""Reading TUF metadata: bounded parsing, signatures and expiry, with our own errors.

A `TrustedSet` is what has been verified so far. Nothing here touches a database, a clock
or a key file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeVar
from urllib.parse import quote, unquote

from edgewise_protocol.bounds import MAX_METADATA_BYTES, MAX_ROOT_BYTES
from edgewise_protocol.errors import SignatureError
from edgewise_protocol.metadata import NOT_METADATA, encode_metadata
from edgewise_protocol.metadata import check_signed as check_delegate
from tuf.api.metadata import Metadata, Root, Targets

from edgewise_server.errors import ExpiredError, InvalidError, TrustError, UnsignedError

T = TypeVar("T", Root, Targets)

ROOT: Final = "root"
TARGETS: Final = "targets"
SNAPSHOT: Final = "snapshot"
TIMESTAMP: Final = "timestamp"


@dataclass(frozen=True)
class TrustedSet:
    """Verified metadata: root, targets, and delegated roles by name."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    delegated: Mapping[str, Metadata[Targets]] = field(default_factory=dict)

    def signer_of(self, role: str) -> Metadata[Targets]:
        """The metadata of `targets` or of a delegated role.

        Raises:
            TrustError: there are none.
        """
        if role == TARGETS:
            return self.targets
        found = self.delegated.get(role)
        if found is None:
            raise TrustError(f"no metadata of the role {role!r} are trusted")
        return found


def parse(data: bytes, kind: type[T], what: str) -> Metadata[T]:
    """Parse bounded metadata of one kind.

    Raises:
        InvalidError: too long, not TUF metadata, or of another kind.
    """
    limit = MAX_ROOT_BYTES if kind is Root else MAX_METADATA_BYTES
    if len(data) > limit:
        raise InvalidError(f"the {what} metadata have {len(data)} bytes; at most {limit} are allowed")
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(data)
    except NOT_METADATA as error:
        raise InvalidError(f"the {what} metadata cannot be read: {error.__cause__ or error}") from error
    if not isinstance(metadata.signed, kind):
        raise InvalidError(f"the {what} metadata are of the type {metadata.signed.type!r}")
    return metadata


def parse_object(value: object, kind: type[T], what: str) -> tuple[Metadata[T], bytes]:
    """Metadata given as a JSON object, or as a string that holds the JSON; and their bytes."""
    if isinstance(value, str):
        data = value.encode()
        return parse(data, kind, what), data
    if not isinstance(value, dict):
        raise InvalidError(f"the {what} metadata are neither an object nor a string")
    try:
        data = encode_metadata(Metadata.from_dict(_copy(value)))
    except NOT_METADATA as error:
        raise InvalidError(f"the {what} metadata cannot be read: {error.__cause__ or error}") from error
    return parse(data, kind, what), data


def check_signed(parent: Root | Targets, role: str, metadata: Metadata[Any]) -> None:
    """Raise `UnsignedError` unless `metadata` are signed as `parent` demands of `role`."""
    try:
        check_delegate(parent, role, metadata)
    except SignatureError as error:
        raise UnsignedError(str(error)) from error


def is_signed(parent: Root | Targets, role: str, metadata: Metadata[Any]) -> bool:
    """Whether `check_signed` passes."""
    try:
        check_signed(parent, role, metadata)
    except UnsignedError:
        return False
    return True


def check_fresh(metadata: Metadata[Any], role: str, now: datetime) -> None:
    """Raise `ExpiredError` if the metadata have expired."""
    if metadata.signed.is_expired(now):
        raise ExpiredError(f"the {role} metadata expired at {metadata.signed.expires.isoformat()}")


def file_name(role: str, version: int | None) -> str:
    """File name of metadata in a consistent repository: `3.targets.json`, `1.auto%2Flab.json`, `timestamp.json`."""
    quoted = quote(role, "")
    return f"{quoted}.json" if version is None or role == TIMESTAMP else f"{version}.{quoted}.json"


def parse_file_name(name: str) -> tuple[str, int | None]:
    """Role and version (None: the current one) of a metadata file name.

    Raises:
        InvalidError: it is not one.
    """
    if not name.endswith(".json") or len(name) > 128:
        raise InvalidError(f"{name[:80]!r} is not the name of a metadata file")
    stem = name.removesuffix(".json")
    number, dot, rest = stem.partition(".")
    if dot and number.isascii() and number.isdigit() and len(number) < 10:
        return unquote(rest), int(number)
    return unquote(stem), None


def digest(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def _copy(value: Any) -> Any:
    """A deep copy of JSON, bounded in depth by the parser that made it; python-tuf consumes its argument."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
