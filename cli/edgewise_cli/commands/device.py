"""`edgewise device`: enrolment files, the fleet's devices, revocation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from edgewise_protocol.enrolment import decode_enrolment

from edgewise_cli import files
from edgewise_cli.client import segment
from edgewise_cli.errors import CliError, RefusedError, TimedOutError, UsageError
from edgewise_cli.keys.delegations import channels
from edgewise_cli.keys.folder import open_folder
from edgewise_cli.shell import Json, Shell, command
from edgewise_cli.times import readable, span
from edgewise_cli.trust.repository import FOLDER, Repository
from edgewise_cli.waiting import wait_for

app = typer.Typer(help="Devices: enrol, list, show, revoke, replace, decommission.", no_args_is_help=True)

_MAX_DEVICES = 100_000
DAY = 86_400

Id = Annotated[str, typer.Argument(metavar="DEVICE", help="Device id.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Where to write the enrolment file (mode 0600).", show_default=False)]
ExpiresIn = Annotated[
    int, typer.Option(help="Until the token expires: 30m, 2h, 7d; a number is seconds.", parser=span, metavar="SPAN")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]
Keys = Annotated[
    Path | None,
    typer.Option(
        help="Your key folder: its CA and root go into the file, whatever the server says.", show_default=False
    ),
]


@command(app, "enrol-file")
def enrol_file(
    shell: Shell,
    channel: Annotated[str, typer.Option(help="The channel that the device belongs to for good.")],
    out: Out,
    group: Annotated[list[str] | None, typer.Option(help="Groups to put it into.")] = None,
    name: Annotated[str | None, typer.Option(help="Device id to take; else the server makes one.")] = None,
    expires_in: ExpiresIn = DAY,
    keys: Keys = None,
    force: Force = False,
) -> Json:
    """Write the file that takes one device into the fleet. It is a secret until it is used or expires."""
    _check_out(out, force)
    groups = group or []
    body = {"channel": channel, "groups": groups, "expires_in_s": expires_in, **({"name": name} if name else {})}
    if keys is not None:
        _check_channel(shell, keys, channel)
    made = shell.client.post("/enrolments", body)
    return _keep(shell, made, {"name": name, "channel": channel, "groups": groups}, out, keys)


def _check_out(out: Path, force: bool) -> None:
    """Before the server makes a token: an enrolment file that lies there may be another device's only one."""
    if out.exists() and not force:
        raise RefusedError(f"{out} exists: give another --out, or --force to replace it")


def _keep(shell: Shell, made: dict[str, Any], said: Json, out: Path, keys: Path | None) -> Json:
    """Write the enrolment file; where that fails, its token is withdrawn."""
    try:
        _write_file(made, out, keys)
    except CliError:
        shell.client.delete(f"/enrolments/{segment(str(made['id']))}")
        raise
    shell.say(f"{out}: hand it to the device, then `edgewise-agent enrol {out.name} --state DIR`")
    return {"file": str(out), "id": made.get("id"), **said}


def _write_file(made: dict[str, Any], out: Path, keys: Path | None) -> None:
    if keys is not None:
        folder = open_folder(keys, "offline")
        own = {"tuf_root": folder.root().decode(), "fleet_ca": files.read(folder.path / "fleet-ca.crt").decode()}
        if own["fleet_ca"].strip() != str(made.get("fleet_ca", "")).strip():
            raise RefusedError("the server's fleet CA is not yours: is this the right server, or the right key folder?")
        made.update(own)
    data = json.dumps(made, indent=1).encode() + b"\n"
    decode_enrolment(data)
    files.write(out, data, secret=True)


def _pages(shell: Shell, limit: int, **filters: str | None) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    after: str | None = None
    while len(items) < limit:
        page = shell.client.get("/devices", **filters, limit=min(200, limit - len(items)), after=after)
        items += page["items"]
        after = page.get("next")
        if after is None or not page["items"]:
            break
    return items


def _check_channel(shell: Shell, keys: Path, channel: str) -> None:
    """A device keeps its channel for good, so a mistyped one is refused before it has a device."""
    folder = open_folder(keys, "offline")
    known = channels(Repository(shell.client, folder.path / FOLDER, folder.root()).targets().signed)
    if channel not in known:
        raise UsageError(f"the channel {channel!r} is not one of this fleet's: {', '.join(sorted(known))}")


@command(app, "list")
def list_devices(
    shell: Shell,
    group: Annotated[str | None, typer.Option(help="Only devices of this group.")] = None,
    channel: Annotated[str | None, typer.Option(help="Only devices of this channel.")] = None,
    q: Annotated[str | None, typer.Option("--query", help="Only devices that a query matches.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=_MAX_DEVICES)] = 1000,
) -> Json:
    """List devices: what they are, whether they are online, what serves on them."""
    items = _pages(shell, limit, group=group, channel=channel, q=q)
    rows = []
    for d in items:
        state = _state(d)
        models = ", ".join(f"{m['model']} {m['active_version']} ({m['state']})" for m in d.get("models", []))
        board = ", ".join(d.get("compatible") or []) + (" (simulated)" if d.get("simulated") else "")
        agent = str(d.get("agent_version") or "") + (" (too old)" if d.get("agent_too_old") else "")
        rows.append([d["id"], d["channel"], board, state, models, agent, readable(d.get("last_seen_at"))])
    shell.table("Devices", ["device", "channel", "board", "state", "models", "agent", "last seen"], rows)
    return {"devices": items}


def _state(device: dict[str, Any]) -> str:
    if device.get("decommissioned_at"):
        return "decommissioned"
    if device.get("revoked_at"):
        return "revoked"
    reached = "online" if device["online"] else "offline"
    if device.get("decommission_by"):
        return f"{reached}, being decommissioned"
    return f"{reached}, cloned-identity" if device.get("cloned_at") else reached


@command(app, "show")
def show(shell: Shell, device: Id) -> Json:
    """Show one device: facts, certificate, assignment, what it reports, its last events."""
    found: Json = shell.client.get(f"/devices/{segment(device)}")
    found["events"] = shell.client.get(f"/devices/{segment(device)}/events", limit=10)["events"]
    shell.document(found)
    return found


@command(app, "wait")
def wait(
    shell: Shell,
    device: Annotated[list[str], typer.Argument(metavar="DEVICE...", help="Device ids.", show_default=False)],
    timeout: Annotated[float, typer.Option(help="Seconds to wait.", min=0)] = 60,
) -> Json:
    """Wait until devices are online."""

    def missing() -> list[str]:
        online = {d["id"] for d in _pages(shell, _MAX_DEVICES) if d["online"]}
        return [d for d in device if d not in online]

    try:
        wait_for(missing, lambda left: not left, timeout_s=timeout, what="devices online", every_s=0.3)
    except TimedOutError as error:
        raise TimedOutError(f"{error}; still offline: {', '.join(missing())}") from error
    shell.say(f"online: {', '.join(device)}")
    return {"online": device}


@command(app, "revoke")
def revoke(shell: Shell, device: Id) -> Json:
    """Revoke a device's certificate. It can enrol again only with a new enrolment file."""
    found: Json = shell.client.post(f"/devices/{segment(device)}/revoke")
    shell.say(f"{device} is revoked")
    return found


@command(app, "replace")
def replace(
    shell: Shell,
    device: Id,
    out: Out,
    expires_in: ExpiresIn = DAY,
    keys: Keys = None,
    force: Force = False,
) -> Json:
    """Give a device's place to new hardware: write an enrolment file for the same id.

    Groups and assignment stay. The old certificate is revoked when the file is used, and until then
    the old device serves on.
    """
    _check_out(out, force)
    old = shell.client.get(f"/devices/{segment(device)}")
    groups = [g for g in old.get("groups", []) if g != "all"]
    made = shell.client.post(f"/devices/{segment(device)}/replace", {"expires_in_s": expires_in})
    return _keep(shell, made, {"name": device, "channel": old["channel"], "groups": groups}, out, keys)


@command(app, "decommission")
def decommission(
    shell: Shell,
    device: Id,
    within: Annotated[
        int | None,
        typer.Option(help="Seconds that the device may take to report that it runs nothing; 0 revokes it now.", min=0),
    ] = None,
    wait_s: Annotated[
        float, typer.Option("--wait", help="Seconds to wait here until it is done; 0 does not wait.", min=0)
    ] = 0,
) -> Json:
    """End a device's service: it is told to run nothing, then revoked. Its row stays for the audit."""
    body = {} if within is None else {"within_s": within}
    found: Json = shell.client.post(f"/devices/{segment(device)}/decommission", body)
    if wait_s:
        found = wait_for(
            lambda: shell.client.get(f"/devices/{segment(device)}"),
            lambda now: bool(now["decommissioned_at"]),
            timeout_s=wait_s,
            what=f"{device} to be decommissioned",
            every_s=0.3,
        )
    done = found["decommissioned_at"]
    shell.say(
        f"{device} is decommissioned; `edgewise-agent erase` wipes what it holds"
        if done
        else f"{device} is to run nothing, and is revoked by {readable(found['decommission_by'])} at the latest"
    )
    return found


@command(app, "enrolments")
def enrolments(shell: Shell) -> Json:
    """List enrolment files that were made: who may still come in, and who came."""
    items = shell.client.get("/enrolments")["items"]
    shell.table(
        "Enrolments",
        ["id", "channel", "name", "by", "expires", "used by"],
        [
            [e["id"], e["channel"], e["name"], e["created_by"], readable(e["expires_at"]), e["device_id"] or "-"]
            for e in items
        ],
    )
    return {"enrolments": items}


@command(app, "withdraw")
def withdraw(
    shell: Shell,
    enrolment: Annotated[str, typer.Argument(metavar="ENROLMENT", help="Its id.", show_default=False)],
) -> Json:
    """Withdraw an enrolment file that was not used: whoever has it stays out. A device that used it stays in."""
    shell.client.delete(f"/enrolments/{segment(enrolment)}")
    shell.say(f"enrolment {enrolment} is withdrawn")
    return {"id": enrolment, "withdrawn": True}
