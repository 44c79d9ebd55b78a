"""`edgewise group`: static groups and groups by query."""

from __future__ import annotations

from typing import Annotated

import typer
from edgewise_protocol.errors import TopicError
from edgewise_protocol.names import check_name

from edgewise_cli.client import segment
from edgewise_cli.errors import UsageError
from edgewise_cli.shell import Json, Shell, command

app = typer.Typer(help="Groups of devices: by name, or by query.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="GROUP", help="The group's name.", show_default=False)]
Devices = Annotated[list[str], typer.Argument(metavar="DEVICE...", help="Device ids.", show_default=False)]


@command(app, "create")
def create(
    shell: Shell,
    group: Name,
    query: Annotated[
        str | None, typer.Option(help="e.g. 'compatible == raspberry-pi-5 and memory_mib >= 2048'; else static.")
    ] = None,
) -> Json:
    """Make a group."""
    try:
        check_name(group, "group")
    except TopicError as error:
        raise UsageError(str(error)) from error
    made: Json = shell.client.post("/groups", {"name": group, **({"query": query} if query else {})})
    shell.say(f"group {group}: {made['members']} member(s)")
    return made


@command(app, "list")
def list_groups(shell: Shell) -> Json:
    """List groups."""
    items = shell.client.get("/groups")["items"]
    shell.table(
        "Groups", ["group", "query", "members"], [[g["name"], g.get("query") or "-", str(g["members"])] for g in items]
    )
    return {"groups": items}


@command(app, "show")
def show(shell: Shell, group: Name) -> Json:
    """Show a group and its devices."""
    found: Json = shell.client.get(f"/groups/{segment(group)}")
    shell.table(group, ["device"], [[d] for d in found["devices"]])
    return found


@command(app, "add")
def add(shell: Shell, group: Name, device: Devices) -> Json:
    """Put devices into a static group."""
    for name in device:
        shell.client.put(f"/groups/{segment(group)}/devices/{segment(name)}")
    shell.say(f"{group}: added {', '.join(device)}")
    return {"group": group, "added": device}


@command(app, "remove")
def remove(shell: Shell, group: Name, device: Devices) -> Json:
    """Take devices out of a static group."""
    for name in device:
        shell.client.delete(f"/groups/{segment(group)}/devices/{segment(name)}")
    shell.say(f"{group}: removed {', '.join(device)}")
    return {"group": group, "removed": device}


@command(app, "delete")
def delete(shell: Shell, group: Name) -> Json:
    """Delete a group; its devices stay."""
    shell.client.delete(f"/groups/{segment(group)}")
    shell.say(f"group {group} is deleted")
    return {"group": group, "deleted": True}
