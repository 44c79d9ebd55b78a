"""Attestations: DSSE envelopes over the provenance of uploaded bundles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewise_protocol.bundle import BundleReader
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.targets import BESIDE, ROUNDS
from sqlmodel import Session, col, select

from edgewise_server.blobs.store import BlobStore
from edgewise_server.errors import AttestationError, NotFoundError
from edgewise_server.models.trust import Attestation
from edgewise_server.services import blobs
from edgewise_server.trust.documents import TARGETS, TrustedSet
from edgewise_server.trust.lineage import check_statement, read_provenance, verify_envelope
from edgewise_server.trust.rules import delegated_roles, keys_of_role


def submit(
    session: Session, store: BlobStore, trusted: TrustedSet, bundle_sha256: str, envelope: Mapping[str, Any]
) -> list[Attestation]:
    """Verify an envelope and keep it for each role whose key has signed it; a newer one replaces an older.

    Raises:
        NotFoundError: the bundle was not uploaded.
        LineageError: its provenance is missing or wrong.
        AttestationError: the envelope is not over it, or no trusted key signed it.
    """
    if blobs.find(session, bundle_sha256) is None:
        raise NotFoundError(f"there is no blob {bundle_sha256[:64]!r}: upload the bundle before its attestation")
    with store.open(bundle_sha256) as source:
        try:
            bundle = BundleReader(source)
        except ProtocolError as error:
            raise AttestationError(f"the blob {bundle_sha256} is not a bundle: {error}") from error
        provenance = read_provenance(bundle)
        check_statement(provenance, bundle.manifest)
    signed_by = verify_envelope(envelope, provenance, _keys_by_role(trusted))
    kept: list[Attestation] = []
    for role, keyids in signed_by.items():
        row = session.get(Attestation, (bundle_sha256, role))
        if row is None:
            row = Attestation(bundle_sha256=bundle_sha256, role=role, keyids=keyids, envelope=dict(envelope))
        else:
            row.keyids, row.envelope = keyids, dict(envelope)
        session.add(row)
        kept.append(row)
    session.flush()
    return kept


def of_bundle(session: Session, bundle_sha256: str) -> list[Attestation]:
    """The attestations of a bundle, by role."""
    statement = select(Attestation).where(Attestation.bundle_sha256 == bundle_sha256)
    return list(session.exec(statement.order_by(col(Attestation.role))))


def _keys_by_role(trusted: TrustedSet) -> dict[str, Any]:
    root, targets = trusted.root.signed, trusted.targets.signed
    roles = [TARGETS, *(name for name in delegated_roles(targets) if name not in BESIDE | {ROUNDS})]
    return {role: keys_of_role(root, targets, role) for role in roles}
