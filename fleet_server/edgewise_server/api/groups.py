"""Routes: groups of devices."""

from __future__ import annotations

from fastapi import APIRouter

from edgewise_server.api.auth import Operator, Viewer
from edgewise_server.api.schemas import GroupDetail, GroupIn, GroupOut, Items
from edgewise_server.db import SessionDep
from edgewise_server.services import audit, devices, groups

router = APIRouter(tags=["groups"])


@router.post("/groups", status_code=201, summary="Make a group, by hand or by a query over facts")
def create_group(body: GroupIn, session: SessionDep, who: Operator) -> GroupOut:
    group = groups.create(session, body.name, body.query)
    audit.record(session, who.name, "group.create", group.name, {"query": group.query})
    return GroupOut(name=group.name, query=group.query, members=groups.size(session, group))


@router.get("/groups", summary="All groups; `all` is built in")
def list_groups(session: SessionDep, _: Viewer) -> Items[GroupOut]:
    return Items(
        items=[
            GroupOut(name=group.name, query=group.query, members=groups.size(session, group))
            for group in groups.all_groups(session)
        ]
    )


@router.get("/groups/{name}", summary="A group and its devices")
def get_group(name: str, session: SessionDep, _: Viewer) -> GroupDetail:
    group = groups.get(session, name)
    found = [device.id for device in devices.in_group(session, name)]
    return GroupDetail(name=group.name, query=group.query, members=len(found), devices=found)


@router.delete("/groups/{name}", status_code=204, summary="Remove a group; its devices stay")
def delete_group(name: str, session: SessionDep, who: Operator) -> None:
    groups.delete(session, name)
    audit.record(session, who.name, "group.delete", name)


@router.put("/groups/{name}/devices/{device_id}", status_code=204, summary="Put a device into a group")
def add_to_group(name: str, device_id: str, session: SessionDep, who: Operator) -> None:
    groups.add_device(session, name, device_id)
    audit.record(session, who.name, "group.add", name, {"device": device_id})


@router.delete("/groups/{name}/devices/{device_id}", status_code=204, summary="Take a device out of a group")
def remove_from_group(name: str, device_id: str, session: SessionDep, who: Operator) -> None:
    groups.remove_device(session, name, device_id)
    audit.record(session, who.name, "group.remove", name, {"device": device_id})
