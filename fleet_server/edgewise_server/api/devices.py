"""Routes: enrolment and devices."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Annotated, Any, Final

import msgspec
from edgewise_protocol.agent import is_older
from edgewise_protocol.bounds import MAX_CONFIRM_WITHIN_S
from edgewise_protocol.enrolment import EnrolmentFile
from edgewise_protocol.renewal import NonceRequest, RenewRequest
from fastapi import APIRouter, Depends, Query, Request, Response

from edgewise_server.api.auth import Operator, Viewer
from edgewise_server.api.deps import ContextDep
from edgewise_server.api.schemas import (
    AssignmentOut,
    CertificateOut,
    DecommissionIn,
    DeviceDetail,
    DeviceOut,
    Devices,
    EnrolmentIn,
    EnrolmentOut,
    Items,
    ModelState,
    ReplacementIn,
)
from edgewise_server.api.trust import RawBody
from edgewise_server.context import Context
from edgewise_server.db import SessionDep
from edgewise_server.models.base import utc_now
from edgewise_server.models.devices import Device, Enrolment
from edgewise_server.services import assignments, audit, devices, groups, identity, metadata, renewals
from edgewise_server.trust.documents import ROOT

router = APIRouter(tags=["devices"])
NO_DEPLOYMENT: Final = "none"
_ENROL_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["token", "csr_pem", "facts"]},
                "example": {
                    "token": "ewe_...",
                    "csr_pem": "-----BEGIN CERTIFICATE REQUEST-----\n...",
                    "facts": {"machine": "aarch64", "compatible": ["raspberrypi,4-model-b", "raspberry-pi-4-64"]},
                },
            }
        },
    }
}


def _body(*required: str) -> dict[str, Any]:
    schema = {"type": "object", "required": list(required)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _rate_bound(request: Request) -> None:
    request.app.state.enrol_rate.take(request.client.host if request.client else "unknown")


@router.post(
    "/enrol",
    status_code=201,
    summary="A device joins the fleet with its one-time token and a CSR",
    openapi_extra=_ENROL_BODY,
    response_class=Response,
    dependencies=[Depends(_rate_bound)],
)
def enrol(data: RawBody, context: ContextDep) -> Response:
    request = identity.decode_request(data)
    with context.database.session() as session:
        answer = identity.enrol(
            session,
            context.authority,
            request,
            now=utc_now(),
            certificate_days=context.settings.certificate_days,
        )
        audit.record(session, "device", "device.enrol", answer.device_id, {"channel": answer.channel})
    # a device whose place was taken is out from now on; where nothing was revoked, nothing is signed
    context.refresh_crl()
    return Response(msgspec.json.encode(answer), status_code=201, media_type="application/json")


def _renew_rate_bound(request: Request) -> None:
    request.app.state.renew_rate.take(request.client.host if request.client else "unknown")


@router.post(
    "/renew/nonce",
    summary="A device asks for the nonce of its renewal",
    openapi_extra=_body("device_id"),
    response_class=Response,
    dependencies=[Depends(_renew_rate_bound)],
)
def renewal_nonce(data: RawBody, session: SessionDep, context: ContextDep) -> Response:
    request = renewals.decode_request(data, NonceRequest)
    answer = renewals.nonce(session, context.authority, request, now=utc_now())
    return Response(msgspec.json.encode(answer), media_type="application/json")


@router.post(
    "/renew",
    summary="A device proves that it holds its registered key, and gets a certificate for a new one",
    openapi_extra=_body("device_id", "nonce", "csr_pem", "public_key_pem", "signature"),
    response_class=Response,
    dependencies=[Depends(_renew_rate_bound)],
)
def renew(data: RawBody, session: SessionDep, context: ContextDep) -> Response:
    request = renewals.decode_request(data, RenewRequest)
    answer = renewals.renew(session, context.authority, context.settings, request, now=utc_now())
    audit.record(session, "device", "device.renew", answer.device_id)
    return Response(msgspec.json.encode(answer), media_type="application/json")


@router.post("/enrolments", status_code=201, summary="Make an enrolment file for one device; it is a secret")
def create_enrolment(body: EnrolmentIn, session: SessionDep, context: ContextDep, who: Operator) -> dict[str, Any]:
    enrolment, file = identity.create_enrolment(
        session,
        context.settings,
        metadata.require(session, ROOT).payload.decode(),
        channel=body.channel,
        group_names=body.groups,
        name=body.name,
        actor=who.name,
        expires_in_s=body.expires_in_s,
    )
    audit.record(session, who.name, "enrolment.create", enrolment.id, {"channel": body.channel, "name": body.name})
    return _enrolment_file(enrolment, file)


@router.post(
    "/devices/{device_id}/replace",
    status_code=201,
    summary="Make an enrolment file by which new hardware takes a device's place; groups and assignment stay",
)
def replace_device(
    device_id: str, body: ReplacementIn, session: SessionDep, context: ContextDep, who: Operator
) -> dict[str, Any]:
    enrolment, file = identity.replace_device(
        session,
        context.settings,
        metadata.require(session, ROOT).payload.decode(),
        device_id,
        actor=who.name,
        expires_in_s=body.expires_in_s,
    )
    audit.record(session, who.name, "device.replace", device_id, {"enrolment": enrolment.id})
    return _enrolment_file(enrolment, file)


@router.post(
    "/devices/{device_id}/decommission",
    summary="End a device's service: it is told to run nothing, then revoked; its row stays for the audit",
)
def decommission_device(
    device_id: str, body: DecommissionIn, session: SessionDep, context: ContextDep, who: Operator
) -> DeviceDetail:
    device = devices.get(session, device_id)
    if device.decommission_by is None and device.revoked_at is None:
        assignments.assign(session, context, device, (), NO_DEPLOYMENT, MAX_CONFIRM_WITHIN_S)
    within_s = context.settings.decommission_s if body.within_s is None else body.within_s
    device = devices.decommission(session, device_id, utc_now() + timedelta(seconds=within_s))
    audit.record(session, who.name, "device.decommission", device_id, {"within_s": within_s})
    return _detail(device, groups.of_device(session, device_id), context)


@router.get("/enrolments", summary="Enrolments, newest first, without their tokens")
def list_enrolments(session: SessionDep, _: Operator) -> Items[EnrolmentOut]:
    found = identity.all_enrolments(session)
    return Items(items=[EnrolmentOut(**row.model_dump(exclude={"token_sha256"})) for row in found])


@router.delete("/enrolments/{enrolment_id}", status_code=204, summary="Withdraw an enrolment")
def delete_enrolment(enrolment_id: str, session: SessionDep, who: Operator) -> None:
    enrolment = identity.delete_enrolment(session, enrolment_id)
    audit.record(session, who.name, "enrolment.delete", enrolment.id)


@router.get("/devices", summary="Devices by id, of a group, a channel or a query")
def list_devices(
    session: SessionDep,
    context: ContextDep,
    _: Viewer,
    group: Annotated[str, Query(max_length=64)] = "",
    q: Annotated[str, Query(max_length=500, examples=["memory_mib >= 1024"])] = "",
    channel: Annotated[str, Query(max_length=64)] = "",
    after: Annotated[str, Query(max_length=64)] = "",
    limit: Annotated[int, Query(ge=1, le=1_000)] = 200,
) -> Devices:
    minimum = context.settings.minimum_agent_version
    found, after_id = devices.page(session, group=group, query=q, channel=channel, after=after, limit=limit)
    return Devices(items=[DeviceOut(**_summary(device, minimum)) for device in found], next=after_id)


@router.get("/devices/{device_id}", summary="A device: facts, what it reports, what it was told")
def get_device(device_id: str, session: SessionDep, context: ContextDep, _: Viewer) -> DeviceDetail:
    return _detail(devices.get(session, device_id), groups.of_device(session, device_id), context)


@router.post("/devices/{device_id}/revoke", summary="Revoke a device's certificate")
def revoke_device(device_id: str, context: ContextDep, who: Operator) -> DeviceDetail:
    with context.database.session() as session:
        device = devices.revoke(session, device_id)
        audit.record(session, who.name, "device.revoke", device_id)
        detail = _detail(device, groups.of_device(session, device_id), context)
    context.refresh_crl(force=True)
    return detail


@router.delete("/devices/{device_id}", status_code=204, summary="Revoke a device and forget it")
def delete_device(device_id: str, context: ContextDep, who: Operator) -> None:
    with context.database.session() as session:
        devices.delete(session, device_id)
        audit.record(session, who.name, "device.delete", device_id)
    context.refresh_crl(force=True)


def _enrolment_file(enrolment: Enrolment, file: EnrolmentFile) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(msgspec.json.encode(file))
    return document | {"id": enrolment.id, "expires_at": enrolment.expires_at.isoformat()}


def _summary(device: Device, minimum_agent: str) -> dict[str, Any]:
    reported = device.reported or {}
    states = [
        ModelState(
            model=report["model"],
            state=report["state"],
            active_version=report.get("active_version", 0),
            target_version=report.get("target_version", 0),
            error_code=report.get("error_code", ""),
        )
        for report in reported.get("models", [])
    ]
    return {
        "id": device.id,
        "channel": device.channel,
        "online": device.online,
        "simulated": device.simulated,
        "machine": device.facts.get("machine", ""),
        "compatible": list(device.facts.get("compatible", [])),
        "agent_version": device.facts.get("agent_version", ""),
        "agent_too_old": is_older(device.facts.get("agent_version", ""), minimum_agent),
        "enrolled_at": device.enrolled_at,
        "last_seen_at": device.last_seen_at,
        "revoked_at": device.revoked_at,
        "decommission_by": device.decommission_by,
        "decommissioned_at": device.decommissioned_at,
        "cloned_at": device.cloned_at,
        "cloned_instances": device.cloned_instances,
        "assignment_version": device.assignment_version,
        "models": states,
    }


def _detail(device: Device, group_names: list[str], context: Context) -> DeviceDetail:
    return DeviceDetail(
        **_summary(device, context.settings.minimum_agent_version),
        facts=device.facts,
        reported=device.reported,
        serving_url=device.serving_url,
        certificate=CertificateOut(
            serial=device.certificate_serial,
            not_after=device.certificate_not_after,
            key_sha256=device.key_sha256,
            renewed_serial=device.next_serial,
        ),
        assignment=_assignment(device),
        groups=group_names,
    )


def _assignment(device: Device) -> AssignmentOut | None:
    issued = device.assignment
    if issued is None:
        return None
    bundles = [
        {
            "model": file["custom"]["model"],
            "version": file["custom"].get("version", 1),
            "profile": file["custom"].get("profile", ""),
            "path": file["path"],
            "sha256": file["sha256"],
        }
        for file in issued["bundles"]
    ]
    return AssignmentOut.model_validate({**issued, "version": device.assignment_version, "bundles": bundles})
