"""Rows of signed metadata: the newest of each role, and the trusted set that they make."""

from __future__ import annotations

from datetime import datetime

from edgewise_protocol.targets import DIRECTOR
from sqlalchemy import and_, func
from sqlmodel import Session, col, delete, select
from tuf.api.metadata import Metadata, Root, Targets

from edgewise_server.errors import NotFoundError, NoTrustError
from edgewise_server.models.trust import TrustMetadata
from edgewise_server.trust.documents import (
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    TrustedSet,
    digest,
    is_signed,
    parse,
    parse_file_name,
)
from edgewise_server.trust.rules import delegated_roles

ONLINE: tuple[str, ...] = (SNAPSHOT, TIMESTAMP)


def versions(session: Session) -> dict[str, int]:
    """The newest version of every role."""
    statement = select(TrustMetadata.role, func.max(TrustMetadata.version)).group_by(col(TrustMetadata.role))
    return {role: int(version) for role, version in session.exec(statement)}


def states(session: Session) -> dict[str, tuple[int, datetime]]:
    """Version and expiry of the newest metadata of every role; empty before the ceremony."""
    found: dict[str, tuple[int, datetime]] = {}
    statement = select(TrustMetadata.role, TrustMetadata.version, TrustMetadata.expires_at)
    for role, version, expires in session.exec(statement.order_by(col(TrustMetadata.version))):
        found[role] = (version, expires)
    return dict(sorted(found.items()))


def newest(session: Session, role: str) -> TrustMetadata | None:
    """The newest row of a role, or None."""
    statement = select(TrustMetadata).where(TrustMetadata.role == role)
    return session.exec(statement.order_by(col(TrustMetadata.version).desc()).limit(1)).first()


def require(session: Session, role: str) -> TrustMetadata:
    """The newest row of a role; raise `NoTrustError` if there is none."""
    row = newest(session, role)
    if row is None:
        raise NoTrustError(f"no {role} metadata are there yet: run the key ceremony and upload it")
    return row


def read(session: Session, name: str) -> TrustMetadata:
    """The row of a metadata file name, e.g. `2.targets.json`; without a number the newest.

    Raises:
        NotFoundError, InvalidError: there is none, or it is not such a name.
    """
    role, version = parse_file_name(name)
    row = newest(session, role) if version is None else session.get(TrustMetadata, (role, version))
    if row is None:
        raise NotFoundError(f"there is no metadata file {name[:128]!r}")
    return row


def add(session: Session, role: str, version: int, payload: bytes, expires: datetime) -> None:
    """Keep a new version of a role's metadata."""
    session.add(TrustMetadata(role=role, version=version, payload=payload, sha256=digest(payload), expires_at=expires))
    session.flush()


def drop_older(session: Session, role: str, keep: int) -> list[int]:
    """Delete all but the newest `keep` versions of a role; returns the versions deleted."""
    statement = select(TrustMetadata.version).where(TrustMetadata.role == role)
    old = list(session.exec(statement.order_by(col(TrustMetadata.version).desc()).offset(keep)))
    if old:
        session.exec(delete(TrustMetadata).where(col(TrustMetadata.role) == role, col(TrustMetadata.version).in_(old)))
    return old


class TrustedReader:
    """Reads the trusted set from the database, parsing and verifying each version once."""

    def __init__(self) -> None:
        self._cached: tuple[set[tuple[str, str]], TrustedSet] | None = None

    def current(self, session: Session) -> TrustedSet:
        """The trusted set.

        Raises:
            NoTrustError: before the ceremony.
        """
        now = _digests(session)
        cached = self._cached
        if cached is not None and cached[0] == now:
            return cached[1]
        found = self._load(session)
        self._cached = (now, found)
        return found

    def _load(self, session: Session) -> TrustedSet:
        root, targets = require(session, ROOT), require(session, TARGETS)
        top: Metadata[Targets] = parse(targets.payload, Targets, TARGETS)
        delegated: dict[str, Metadata[Targets]] = {}
        for role in delegated_roles(top.signed):
            row = None if role == DIRECTOR else newest(session, role)
            if row is not None:
                metadata = parse(row.payload, Targets, role)
                if is_signed(top.signed, role, metadata):
                    delegated[role] = metadata
        return TrustedSet(parse(root.payload, Root, ROOT), top, delegated)


def _digests(session: Session) -> set[tuple[str, str]]:
    """(role, SHA-256) of the newest metadata of every offline role: what the trusted set depends on."""
    latest = select(TrustMetadata.role, func.max(TrustMetadata.version).label("version"))
    latest_of = latest.where(col(TrustMetadata.role).not_in(ONLINE)).group_by(col(TrustMetadata.role)).subquery()
    statement = select(TrustMetadata.role, TrustMetadata.sha256).join(
        latest_of,
        and_(col(TrustMetadata.role) == latest_of.c.role, col(TrustMetadata.version) == latest_of.c.version),
    )
    return set(session.exec(statement))
