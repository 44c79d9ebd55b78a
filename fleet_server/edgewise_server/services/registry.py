"""The registry: model → version → bundle per profile, built from signed metadata only.

`inspect` holds a signed file against its blob before the metadata that name it are
accepted; `sync` then makes the rows say what the trusted metadata say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from edgewise_protocol.bundle import BundleReader
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.facts import DeviceFacts, fits
from edgewise_protocol.manifest import Manifest
from edgewise_protocol.targets import SignedFile, TargetCustom, channel_of, custom_for
from sqlmodel import Session, col, select
from tuf.api.metadata import Key

from edgewise_server.blobs.store import BlobStore
from edgewise_server.errors import InvalidError, LineageError, NotFoundError, TargetError
from edgewise_server.models.registry import ModelVersion, Target
from edgewise_server.models.trust import Attestation
from edgewise_server.services import blobs
from edgewise_server.trust import lineage

STAGES: Final = ("candidate", "production", "archived")
INFERENCE: Final = "inference"
ASSIGNABLE: Final = (INFERENCE, "agent")
"""Kinds of what an assignment may name."""


@dataclass(frozen=True)
class Inspected:
    """A bundle that is what its signed target says."""

    manifest: Manifest
    provenance: dict[str, Any] | None


def inspect(session: Session, store: BlobStore, role: str, file: SignedFile, keys: Mapping[str, Key]) -> Inspected:
    """Hold a signed file against its blob, its manifest, its provenance and its attestation.

    Args:
        role: the TUF role that signs the target.
        keys: that role's trusted keys by id.

    Raises:
        MissingBlobError: it was not uploaded.
        TargetError: length, chunk index, manifest or custom differ, or the bundle is damaged.
        LineageError: provenance or attestation is missing or wrong.
    """
    blob = blobs.require(session, file.sha256)
    if blob.size != file.length:
        raise TargetError(f"{file.path} is signed with {file.length} bytes; the blob has {blob.size}")
    if blob.chunk_index != file.custom.chunk_index:
        raise TargetError(f"{file.path} is signed with another chunk index than its blob has ({blob.chunk_index})")
    with store.open(file.sha256) as source:
        try:
            bundle = BundleReader(source)
            manifest = bundle.verify()
        except ProtocolError as error:
            raise TargetError(f"the bundle of {file.path} is not acceptable: {error}") from error
        if custom_for(manifest, blob.chunk_index) != file.custom:
            raise TargetError(f"the custom of {file.path} is not what the bundle's manifest says")
        if manifest.kind != INFERENCE:
            return Inspected(manifest, None)
        provenance = lineage.read_provenance(bundle)
    statement = lineage.check_statement(provenance, manifest)
    attestation = session.get(Attestation, (file.sha256, role))
    if attestation is None:
        raise LineageError(f"nobody who signs as {role} attests the bundle of {file.path}: upload an attestation first")
    lineage.verify_envelope(attestation.envelope, provenance, {role: keys})
    return Inspected(manifest, statement)


def sync(
    session: Session, effective: Mapping[str, tuple[str, SignedFile]], inspected: Mapping[str, Inspected]
) -> tuple[list[str], list[str]]:
    """Make the rows say what the trusted metadata say.

    Args:
        effective: path -> (role, file) of all that is trusted now.
        inspected: what `inspect` found, for every path that was not trusted before.

    Returns:
        Paths that became trusted, and paths that no longer are.
    """
    rows = {row.path: row for row in session.exec(select(Target))}
    added: list[str] = []
    for path, (role, file) in effective.items():
        row = rows.get(path)
        if row is None:
            row = _row(role, file, inspected[path])
            session.add(row)
            _ensure_version(session, row)
            added.append(path)
        elif not row.trusted or row.role != role:
            if not row.trusted:
                added.append(path)
            row.trusted, row.role = True, role
            session.add(row)
    removed = [path for path, row in rows.items() if row.trusted and path not in effective]
    for path in removed:
        rows[path].trusted = False
        session.add(rows[path])
    session.flush()
    return sorted(added), sorted(removed)


def check_immutable(session: Session, file: SignedFile) -> bool:
    """Whether a path is new; raise `TargetError` if it once stood for another file: versions do not change."""
    row = session.get(Target, file.path)
    if row is None:
        return True
    if _file(row) != file:
        raise TargetError(f"{file.path} was signed before with another content: give the bundle a new version")
    return False


def signed_file(session: Session, path: str) -> SignedFile | None:
    """The trusted file of a path, or None."""
    row = session.get(Target, path)
    return _file(row) if row is not None and row.trusted else None


def bundles_of(session: Session, model: str, version: int, channel: str | None = None) -> list[Target]:
    """The rows of a version's bundles that can be assigned, trusted or not, by path."""
    statement = select(Target).where(Target.model == model, Target.version == version, col(Target.kind).in_(ASSIGNABLE))
    if channel is not None:
        statement = statement.where(Target.channel == channel)
    return list(session.exec(statement.order_by(col(Target.path))))


def bundle_for(session: Session, model: str, version: int, facts: DeviceFacts, *, channel: str) -> SignedFile | None:
    """The trusted bundle of a version that fits a device best, or None if none fits.

    Best is the device's own profile; then the bundle whose `compatible` stands first among
    the device's strings (device trees name the most specific first); then the one that
    needs the most CPU features; then the first by path.
    """
    candidates: list[tuple[tuple[int, int, int, str], SignedFile]] = []
    for row in bundles_of(session, model, version, channel):
        manifest = manifest_of(row)
        if row.trusted and not fits(facts, manifest):
            candidates.append((_preference(facts, manifest, row.path), _file(row)))
    return min(candidates, key=lambda pair: pair[0])[1] if candidates else None


def manifest_of(row: Target) -> Manifest:
    """The manifest of a registered bundle."""
    return msgspec.convert(row.manifest, Manifest)


def versions_of(session: Session, model: str) -> list[ModelVersion]:
    """A model's versions, oldest first; raise `NotFoundError` if there is no such model."""
    statement = select(ModelVersion).where(ModelVersion.model == model).order_by(col(ModelVersion.version))
    found = list(session.exec(statement))
    if not found:
        raise NotFoundError(f"there is no model {model[:64]!r}")
    return found


def version_of(session: Session, model: str, version: int) -> ModelVersion:
    """One version; raise `NotFoundError` if there is none."""
    found = session.get(ModelVersion, (model, version)) if 0 < version < 2**31 else None
    if found is None:
        raise NotFoundError(f"there is no version {version} of {model[:64]!r}")
    return found


def all_versions(session: Session) -> list[ModelVersion]:
    """Every version of every model."""
    return list(session.exec(select(ModelVersion).order_by(col(ModelVersion.model), col(ModelVersion.version))))


def set_stage(session: Session, model: str, version: int, stage: str) -> ModelVersion:
    """Set a version's stage; a new production version archives the old one."""
    if stage not in STAGES:
        raise InvalidError(f"the stage must be one of {', '.join(STAGES)}")
    chosen = version_of(session, model, version)
    if stage == "production":
        for other in versions_of(session, model):
            if other.stage == "production" and other.version != version:
                other.stage = "archived"
                session.add(other)
    chosen.stage = stage
    session.add(chosen)
    session.flush()
    return chosen


def _preference(facts: DeviceFacts, manifest: Manifest, path: str) -> tuple[int, int, int, str]:
    need = manifest.requires
    own = 0 if manifest.profile in facts.compatible else 1
    places = [facts.compatible.index(c) for c in need.compatible if c in facts.compatible]
    return own, min(places, default=len(facts.compatible)), -len(need.cpu_features), path


def _file(row: Target) -> SignedFile:
    custom = msgspec.convert(row.custom, TargetCustom)
    return SignedFile(path=row.path, length=row.length, sha256=row.sha256, custom=custom)


def _row(role: str, file: SignedFile, inspected: Inspected) -> Target:
    return Target(
        path=file.path,
        role=role,
        channel=channel_of(file.path),
        kind=file.custom.kind,
        model=file.custom.model,
        version=file.custom.version,
        profile=file.custom.profile,
        sha256=file.sha256,
        length=file.length,
        custom=msgspec.to_builtins(file.custom),
        manifest=msgspec.to_builtins(inspected.manifest),
        provenance=inspected.provenance,
    )


def _ensure_version(session: Session, row: Target) -> None:
    if row.kind in ASSIGNABLE and session.get(ModelVersion, (row.model, row.version)) is None:
        session.add(ModelVersion(model=row.model, version=row.version))
        session.flush()
