"""Routes: the ceremony, online keys, CRL, signed metadata, attestations."""

from __future__ import annotations

from typing import Annotated, Any

from edgewise_protocol.names import check_sha256
from edgewise_protocol.renewal import fleet_ca_pins
from fastapi import APIRouter, Depends, Request, Response

from edgewise_server import rotation
from edgewise_server.api.access import role_states
from edgewise_server.api.auth import Admin, Operator, OperatorOrWorker, Viewer, ViewerOrWorker
from edgewise_server.api.deps import ContextDep
from edgewise_server.api.schemas import (
    AttestationIn,
    AttestationOut,
    AttestationsOut,
    CeremonyIn,
    FleetCaIn,
    FleetCaOut,
    Installed,
    Items,
    PublishedOut,
    TrustOut,
)
from edgewise_server.context import Context, online_description
from edgewise_server.db import SessionDep
from edgewise_server.errors import NotFoundError
from edgewise_server.models.base import utc_now
from edgewise_server.services import attestations, audit, fleet_ca, identity, metadata
from edgewise_server.services.repository import Published
from edgewise_server.trust.documents import ROOT, TARGETS

router = APIRouter(tags=["trust"])
_RAW_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
}
_RAW_ANSWER: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}}}}


async def raw_body(request: Request) -> bytes:
    """The body as it came; its length is bounded by the middleware."""
    return await request.body()


RawBody = Annotated[bytes, Depends(raw_body)]


@router.get("/trust/online", summary="Public keys of the online roles and the CSR, for the key ceremony")
def online_keys(context: ContextDep, _: Viewer) -> dict[str, Any]:
    # a rotation may have been begun by another process
    context.keys.refresh()
    context.authority.refresh()
    return online_description(context.keys, context.authority)


@router.put("/trust/fleet-ca", summary="Put another intermediate of the fleet's CA into force")
def put_fleet_ca(body: FleetCaIn, context: ContextDep, who: Admin) -> FleetCaOut:
    now = utc_now()
    with context.database.session() as session:
        pins = fleet_ca_pins(context.repository.current(session).targets.signed)
        changed = fleet_ca.change(session, context.authority, pins, body.fleet_ca_pem, body.intermediate_pem, now=now)
        if changed:
            audit.record(
                session, who.name, "trust.fleet-ca", ROOT, {"intermediate": fleet_ca.digest(body.intermediate_pem)}
            )
    if changed:
        context.refresh_crl(force=True)
        rotation.settle(context)
    return FleetCaOut(changed=changed, fleet_ca_pem=body.fleet_ca_pem, intermediate_pem=body.intermediate_pem)


@router.get("/trust", summary="Versions and expiries of the trusted metadata, and the fleet's CA")
def trust(session: SessionDep, _: Viewer) -> TrustOut:
    ca = identity.fleet_ca(session)
    return TrustOut(
        installed=True,
        roles=role_states(metadata.states(session)),
        fleet_ca_pem=ca.root_pem,
        intermediate_pem=ca.intermediate_pem,
    )


@router.put("/trust", summary="Install the key ceremony; the same one again changes nothing")
def install_trust(body: CeremonyIn, context: ContextDep, who: Admin) -> Installed:
    published = context.repository.install(body.model_dump(), now=utc_now(), actor=who.name)
    context.refresh_crl(force=published.changed)
    with context.database.session(read_only=True) as session:
        return Installed(installed=published.changed, roles=role_states(metadata.states(session)))


@router.get(
    "/trust/crl",
    summary="The certificate revocation list, PEM",
    response_class=Response,
    responses={200: {"content": {"application/x-pem-file": {}}}},
)
def revocation_list(session: SessionDep, _: Viewer) -> Response:
    pem = identity.fleet_ca(session).crl_pem
    if not pem:
        raise NotFoundError("no revocation list has been signed yet: run `edgewise trust install`")
    return Response(pem, media_type="application/x-pem-file")


@router.get(
    "/metadata/{role_file:path}",
    summary="A TUF metadata file: timestamp.json, 3.targets.json, 1.auto%2Flab.json, or the newest: root.json",
    response_class=Response,
    responses=_RAW_ANSWER,
)
def read_metadata(role_file: str, session: SessionDep, _: ViewerOrWorker) -> Response:
    return Response(metadata.read(session, role_file).payload, media_type="application/json")


@router.put("/metadata/root", summary="New root metadata", openapi_extra=_RAW_BODY)
def put_root(data: RawBody, context: ContextDep, who: Operator) -> PublishedOut:
    return _upload(context, ROOT, data, who.name)


@router.put("/metadata/targets", summary="New top-level targets metadata, signed offline", openapi_extra=_RAW_BODY)
def put_targets(data: RawBody, context: ContextDep, who: Operator) -> PublishedOut:
    return _upload(context, TARGETS, data, who.name)


@router.put(
    "/metadata/delegated/{role:path}",
    summary="New metadata of `rounds` or `auto/<channel>`, signed by the worker",
    openapi_extra=_RAW_BODY,
)
def put_delegated(role: str, data: RawBody, context: ContextDep, who: OperatorOrWorker) -> PublishedOut:
    if role in (ROOT, TARGETS, *metadata.ONLINE):
        raise NotFoundError(f"{role!r} is not a delegated role")
    return _upload(context, role, data, who.name)


@router.post("/attestations", status_code=201, summary="Attest an uploaded bundle's provenance (DSSE)")
def attest(body: AttestationIn, context: ContextDep, session: SessionDep, who: OperatorOrWorker) -> AttestationsOut:
    trusted = context.repository.current(session)
    kept = attestations.submit(session, context.blobs, trusted, body.bundle_sha256, body.envelope)
    roles = [row.role for row in kept]
    keyids = sorted({keyid for row in kept for keyid in row.keyids})
    audit.record(session, who.name, "attestation.add", body.bundle_sha256, {"roles": roles, "keyids": keyids})
    return AttestationsOut(bundle_sha256=body.bundle_sha256, roles=roles, keyids=keyids)


@router.get("/attestations/{sha256}", summary="The attestations of a bundle")
def list_attestations(sha256: str, session: SessionDep, _: ViewerOrWorker) -> Items[AttestationOut]:
    found = attestations.of_bundle(session, check_sha256(sha256))
    return Items(items=[AttestationOut(**row.model_dump()) for row in found])


def _upload(context: Context, role: str, data: bytes, actor: str) -> PublishedOut:
    published: Published = context.repository.upload(role, data, now=utc_now(), actor=actor)
    if published.changed and role in (ROOT, TARGETS):
        rotation.settle(context)
    return PublishedOut(
        role=role,
        version=published.versions[role],
        snapshot=published.versions["snapshot"],
        timestamp=published.versions["timestamp"],
        added=published.added,
        removed=published.removed,
    )
