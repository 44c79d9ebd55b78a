"""Views of the registry: models, their versions, and the bundles of a version."""

from __future__ import annotations

from dataclasses import dataclass

from edgewise_protocol.assignment import floors
from sqlmodel import Session, col, select

from edgewise_server.models.registry import ModelVersion, Target
from edgewise_server.models.trust import Attestation
from edgewise_server.services import registry
from edgewise_server.trust.documents import TrustedSet


@dataclass(frozen=True)
class Bundle:
    """A bundle's row, and the roles whose keys attest it."""

    row: Target
    attested_by: list[str]


def by_model(session: Session) -> dict[str, list[ModelVersion]]:
    """All versions, by model, oldest first."""
    found: dict[str, list[ModelVersion]] = {}
    for version in registry.all_versions(session):
        found.setdefault(version.model, []).append(version)
    return found


def targets_of(session: Session, model: str) -> list[Target]:
    """Rows of a model's bundles that can be assigned."""
    statement = select(Target).where(Target.model == model, col(Target.kind).in_(registry.ASSIGNABLE))
    return list(session.exec(statement.order_by(col(Target.path))))


def bundles(session: Session, model: str, version: int) -> list[Bundle]:
    """The bundles of a version with their attestations."""
    rows = registry.bundles_of(session, model, version)
    statement = select(Attestation.bundle_sha256, Attestation.role)
    statement = statement.where(col(Attestation.bundle_sha256).in_([row.sha256 for row in rows]))
    roles: dict[str, list[str]] = {}
    for sha256, role in session.exec(statement):
        roles.setdefault(sha256, []).append(role)
    return [Bundle(row, sorted(roles.get(row.sha256, []))) for row in rows]


def floor_of(trusted: TrustedSet, model: str) -> int:
    """The signed floor of a model, 0 for none."""
    return floors(trusted.targets.signed).get(model, 0)


def shared_lineage(rows: list[Target]) -> dict[str, str]:
    """The lineage entries in which all bundles agree, such as the run and the data's fingerprint."""
    lineages = [dict(row.manifest.get("lineage", {})) for row in rows]
    if not lineages:
        return {}
    first, rest = lineages[0], lineages[1:]
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in rest)}
