"""The repository signer: takes in what offline keys have signed, and signs snapshot and timestamp.

Expensive checks run before the transaction that changes anything; that transaction holds
one lock, finds the versions unchanged, and retains the timestamp last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from edgewise_protocol import topics
from edgewise_protocol.targets import DIRECTOR, SignedFile
from sqlmodel import Session, update
from tuf.api.metadata import Root, Targets

from edgewise_server.blobs.store import BlobStore
from edgewise_server.db import Database, hold_lock
from edgewise_server.errors import ConflictError
from edgewise_server.models.assignments import Assignment
from edgewise_server.models.trust import FleetCa, TrustMetadata
from edgewise_server.pki.authority import Authority
from edgewise_server.services import audit, metadata, outgoing, registry
from edgewise_server.services.registry import Inspected
from edgewise_server.settings import Settings
from edgewise_server.trust.ceremony import Ceremony, parse_ceremony, verify_ceremony
from edgewise_server.trust.documents import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, TrustedSet, file_name, parse
from edgewise_server.trust.keys import OnlineKeys
from edgewise_server.trust.online import OnlineSigner, expiry, is_due
from edgewise_server.trust.rules import keys_of_role
from edgewise_server.trust.uploads import accept_delegated, accept_root, accept_targets, signed_files

LOCK: Final = "repository"
KEPT_SNAPSHOTS: Final = 4
"""Snapshots that stay readable: a device may be amid a refresh."""
KEPT_ON_BROKER: Final = 4
"""Versions of targets and delegated metadata that the broker retains."""


@dataclass(frozen=True)
class Published:
    """The repository after a change."""

    versions: Mapping[str, int]
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: bool = True


@dataclass(frozen=True)
class _Change:
    """A verified upload, ready to be stored."""

    trusted: TrustedSet
    payloads: Mapping[str, bytes]
    effective: Mapping[str, tuple[str, SignedFile]]
    inspected: Mapping[str, Inspected]


class Repository:
    """All ways in which the fleet's signed metadata change."""

    def __init__(
        self, settings: Settings, database: Database, blobs: BlobStore, keys: OnlineKeys, authority: Authority
    ) -> None:
        self._settings, self._database, self._blobs = settings, database, blobs
        self._keys, self._authority, self._signer = keys, authority, OnlineSigner(keys)
        self._reader = metadata.TrustedReader()

    def current(self, session: Session) -> TrustedSet:
        """The trusted set; raise `NoTrustError` before the ceremony."""
        return self._reader.current(session)

    def install(self, document: Mapping[str, Any], *, now: datetime, actor: str) -> Published:
        """Install the ceremony. The same one again changes nothing.

        Raises:
            TrustError and its kinds, CertificateError, InvalidError: it must not be installed.
            ConflictError: another trust is installed.
        """
        ceremony = parse_ceremony(document)
        with self._database.session(read_only=True) as session:
            if metadata.newest(session, ROOT) is not None:
                return self._installed_before(session, ceremony)
            trusted = verify_ceremony(ceremony, self._keys, now)
            self._authority.check_intermediate(ceremony.fleet_ca_pem, ceremony.intermediate_pem, now)
            change = self._examine(session, trusted, ceremony.payloads)
        with self._database.session() as session:
            hold_lock(session, LOCK)
            if metadata.newest(session, ROOT) is not None:
                return self._installed_before(session, ceremony)
            session.add(FleetCa(root_pem=ceremony.fleet_ca_pem, intermediate_pem=ceremony.intermediate_pem))
            outgoing.retain(session, topics.SENTINEL, b"1")
            published = self._store(session, change, now)
            audit.record(session, actor, "trust.install", ROOT, dict(published.versions))
        return published

    def upload(self, role: str, data: bytes, *, now: datetime, actor: str) -> Published:
        """Take in new metadata of `root`, `targets` or a delegated role. The current bytes again change nothing.

        Raises:
            TrustError and its kinds, InvalidError: they must not be trusted.
            ConflictError: somebody else changed the repository meanwhile; try again.
        """
        with self._database.session(read_only=True) as session:
            before = metadata.versions(session)
            trusted = self.current(session)
            current = metadata.newest(session, role)
            if current is not None and current.payload == data:
                return Published(before, changed=False)
            accepted = self._accept(role, data, trusted, before.get(role, 0), now)
            change = self._examine(session, accepted, {role: data})
        with self._database.session() as session:
            hold_lock(session, LOCK)
            if _offline(metadata.versions(session)) != _offline(before):
                raise ConflictError("the repository has changed meanwhile; try again")
            published = self._store(session, change, now)
            if role == TARGETS and _director_keys(accepted) != _director_keys(trusted):
                # what the last director signed is worthless now: the orchestrator signs all of it again
                session.exec(update(Assignment).values(expires_at=0.0).execution_options(synchronize_session=False))
            audit.record(
                session,
                actor,
                "metadata.upload",
                role,
                {"version": published.versions[role], "added": published.added, "removed": published.removed},
            )
        return published

    def renew(self, now: datetime) -> bool:
        """Sign snapshot and timestamp anew where half of their life is over; returns whether any was."""
        with self._database.session(read_only=True) as session:
            if self._due(session, now) is None:
                return False
        with self._database.session() as session:
            hold_lock(session, LOCK)
            due = self._due(session, now)  # another process may have been faster
            if due is None:
                return False
            if due.role == SNAPSHOT:
                self._publish_snapshot(session, self.current(session), now)
            else:
                snapshot = metadata.require(session, SNAPSHOT)
                self._publish_timestamp(session, self.current(session), snapshot, now)
        return True

    def leap(self, by: int, now: datetime) -> None:
        """Sign snapshot and timestamp with versions `by` higher: a restored server must not repeat what devices saw."""
        with self._database.session() as session:
            hold_lock(session, LOCK)
            self._publish_snapshot(session, self.current(session), now, step=by)

    def _due(self, session: Session, now: datetime) -> TrustMetadata | None:
        """The snapshot or timestamp whose half life is over; the snapshot first, since it takes both along."""
        for role, days in ((SNAPSHOT, self._settings.snapshot_days), (TIMESTAMP, self._settings.timestamp_days)):
            row = metadata.newest(session, role)
            if row is not None and is_due(row.expires_at, days, now):
                return row
        return None

    def _accept(self, role: str, data: bytes, trusted: TrustedSet, version: int, now: datetime) -> TrustedSet:
        if role == ROOT:
            return accept_root(parse(data, Root, ROOT), trusted, self._keys, now)
        new = parse(data, Targets, role)
        if role == TARGETS:
            return accept_targets(new, trusted, self._keys, now)
        return accept_delegated(role, new, trusted, version, now)

    def _examine(self, session: Session, trusted: TrustedSet, payloads: Mapping[str, bytes]) -> _Change:
        """What is trusted after a change, and what the bundles hold that are new in it."""
        top = trusted.targets.signed
        roles = {TARGETS: top} | {role: trusted.delegated[role].signed for role in trusted.delegated}
        effective: dict[str, tuple[str, SignedFile]] = {}
        inspected: dict[str, Inspected] = {}
        for role, signed in roles.items():
            keys = keys_of_role(trusted.root.signed, top, role)
            for path, file in signed_files(role, signed, top).items():
                if role in payloads and registry.check_immutable(session, file):
                    inspected[path] = registry.inspect(session, self._blobs, role, file, keys)
                # a path that two roles name belongs to the more trusted one, as on the device
                effective.setdefault(path, (role, file))
        return _Change(trusted, payloads, effective, inspected)

    def _store(self, session: Session, change: _Change, now: datetime) -> Published:
        """Keep the new metadata, make the registry agree, sign and publish."""
        for role, payload in change.payloads.items():
            signed = _signed_of(change.trusted, role)
            metadata.add(session, role, signed.version, payload, signed.expires)
            outgoing.retain(session, topics.metadata(file_name(role, signed.version)), payload)
            if role != ROOT and signed.version > KEPT_ON_BROKER:
                outgoing.clear(session, topics.metadata(file_name(role, signed.version - KEPT_ON_BROKER)))
        added, removed = registry.sync(session, change.effective, change.inspected)
        self._publish_snapshot(session, change.trusted, now)
        return Published(metadata.versions(session), added, removed)

    def _publish_snapshot(self, session: Session, trusted: TrustedSet, now: datetime, *, step: int = 1) -> None:
        # a role that was ever in a snapshot stays: devices refuse a snapshot that lacks one
        entries: dict[str, tuple[int, bytes]] = {}
        for role in metadata.versions(session):
            row = None if role in (ROOT, SNAPSHOT, TIMESTAMP) else metadata.newest(session, role)
            if row is not None:
                entries[role] = (row.version, row.payload)
        version = metadata.versions(session).get(SNAPSHOT, 0) + step
        expires = expiry(now, self._settings.snapshot_days)
        payload = self._signer.snapshot(trusted.root.signed, entries, version=version, expires=expires)
        metadata.add(session, SNAPSHOT, version, payload, expires)
        outgoing.retain(session, topics.metadata(file_name(SNAPSHOT, version)), payload)
        for old in metadata.drop_older(session, SNAPSHOT, KEPT_SNAPSHOTS):
            outgoing.clear(session, topics.metadata(file_name(SNAPSHOT, old)))
        self._publish_timestamp(session, trusted, metadata.require(session, SNAPSHOT), now, step=step)

    def _publish_timestamp(
        self, session: Session, trusted: TrustedSet, snapshot: TrustMetadata, now: datetime, *, step: int = 1
    ) -> None:
        version = metadata.versions(session).get(TIMESTAMP, 0) + step
        expires = expiry(now, self._settings.timestamp_days)
        payload = self._signer.timestamp(
            trusted.root.signed, snapshot.version, snapshot.payload, version=version, expires=expires
        )
        metadata.add(session, TIMESTAMP, version, payload, expires)
        metadata.drop_older(session, TIMESTAMP, 1)
        outgoing.retain(session, topics.metadata(file_name(TIMESTAMP, None)), payload)

    def _installed_before(self, session: Session, ceremony: Ceremony) -> Published:
        """The same ceremony again is fine; another one is not."""
        for role, payload in ceremony.payloads.items():
            row = session.get(TrustMetadata, (role, _signed_of(ceremony, role).version))
            if row is None or row.payload != payload:
                raise ConflictError(f"another trust is installed: its {role} metadata differ; use PUT /metadata/{role}")
        return Published(metadata.versions(session), changed=False)


def _signed_of(documents: TrustedSet | Ceremony, role: str) -> Root | Targets:
    if role == ROOT:
        return documents.root.signed
    return documents.targets.signed if role == TARGETS else documents.delegated[role].signed


def _director_keys(trusted: TrustedSet) -> set[str]:
    return set(keys_of_role(trusted.root.signed, trusted.targets.signed, DIRECTOR))


def _offline(versions: Mapping[str, int]) -> dict[str, int]:
    return {role: version for role, version in versions.items() if role not in metadata.ONLINE}
