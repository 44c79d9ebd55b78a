"""The online signer: snapshot, timestamp and assignments. Pure, given keys and a time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from edgewise_protocol.assignment import AssignmentBody, build_assignment
from edgewise_protocol.metadata import encode_metadata
from edgewise_protocol.targets import DIRECTOR, SignedFile
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from edgewise_server.errors import OnlineKeyError
from edgewise_server.trust.documents import SNAPSHOT, TIMESTAMP, digest
from edgewise_server.trust.keys import OnlineKeys
from edgewise_server.trust.rules import keys_of_role


class OnlineSigner:
    """Signs what the server may sign."""

    def __init__(self, keys: OnlineKeys) -> None:
        self._keys = keys

    def snapshot(
        self, root: Root, entries: Mapping[str, tuple[int, bytes]], *, version: int, expires: datetime
    ) -> bytes:
        """A signed snapshot of `entries`: role -> (version, bytes) of targets and delegated metadata."""
        meta = {f"{role}.json": _meta_file(number, data) for role, (number, data) in entries.items()}
        return self._sign_for_root(root, SNAPSHOT, Metadata(Snapshot(version=version, expires=expires, meta=meta)))

    def timestamp(
        self, root: Root, snapshot_version: int, snapshot: bytes, *, version: int, expires: datetime
    ) -> bytes:
        """A signed timestamp that names a snapshot."""
        meta = _meta_file(snapshot_version, snapshot)
        metadata = Metadata(Timestamp(version=version, expires=expires, snapshot_meta=meta))
        return self._sign_for_root(root, TIMESTAMP, metadata)

    def assignment(
        self,
        root: Root,
        targets: Targets,
        body: AssignmentBody,
        bundles: tuple[SignedFile, ...],
        *,
        version: int,
        expires: datetime,
    ) -> bytes:
        """A signed assignment."""
        metadata = build_assignment(body, bundles, version=version, expires=expires)
        key = self._keys.find(DIRECTOR, keys_of_role(root, targets, DIRECTOR).values())
        self._keys.sign(DIRECTOR, key, metadata)
        return encode_metadata(metadata)

    def _sign_for_root(self, root: Root, role: str, metadata: Metadata[Any]) -> bytes:
        trusted = [root.keys[k] for k in root.roles[role].keyids if k in root.keys]
        if not trusted:
            raise OnlineKeyError(f"the root gives the role {role} no key")
        self._keys.sign(role, self._keys.find(role, trusted), metadata)
        return encode_metadata(metadata)


def expiry(now: datetime, days: float) -> datetime:
    """The time `days` from `now`, in whole seconds as TUF writes it."""
    return (now + timedelta(days=days)).replace(microsecond=0)


def is_due(expires: datetime, days: float, now: datetime) -> bool:
    """Whether half of a signature's life is over, so that a device never meets an expired one."""
    return expires - now <= timedelta(days=days) / 2


def _meta_file(version: int, data: bytes) -> MetaFile:
    return MetaFile(version=version, length=len(data), hashes={"sha256": digest(data)})
