"""`edgewise drift` and `edgewise alerts`: what the fleet's sketches say."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgewise_cli.client import segment
from edgewise_cli.shell import Json, Shell, command
from edgewise_cli.times import readable


def add_to(app: typer.Typer) -> None:
    """Add both commands."""
    command(app, "drift")(drift)
    command(app, "alerts")(alerts)


def drift(
    shell: Shell,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    version: Annotated[int | None, typer.Option(help="Only of this version.", min=1)] = None,
    device: Annotated[str | None, typer.Option(help="Only of this device.")] = None,
    group: Annotated[str | None, typer.Option(help="Merged over this group; needs --model and --version.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many windows.", min=1, max=1000)] = 20,
) -> Json:
    """Show drift scores per window: PSI, Jensen-Shannon and KS against the training baseline."""
    found: Json = shell.client.get("/drift", model=model, version=version, device=device, group=group, limit=limit)
    shell.table(
        "Windows, newest first",
        ["device", "model", "at", "samples", "drift", "worst feature", "PSI", "threshold"],
        [_row(w) for w in found["windows"]],
    )
    if found.get("merged"):
        shell.table(
            f"Merged over {group}",
            ["from", "devices", "samples", "drift", "worst feature", "PSI"],
            [
                [readable(m["from"]), str(len(m["devices"])), str(m["samples"]), _verdict(m), w["feature"], _score(w)]
                for m in found["merged"]
                for w in [_worst(m)]
            ],
        )
    return found


def alerts(
    shell: Shell,
    open_only: Annotated[bool, typer.Option("--open/--all", help="Only open ones, or all.")] = True,
    ack: Annotated[str | None, typer.Option(help="Acknowledge the alert with this id.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=1000)] = 100,
) -> Json:
    """List alerts, or acknowledge one."""
    if ack is not None:
        done: Json = shell.client.post(f"/alerts/{segment(ack)}/ack")
        shell.say(f"alert {ack} is acknowledged by {done.get('acked_by')}")
        return done
    items = shell.client.get("/alerts", open="true" if open_only else None, limit=limit)["alerts"]
    shell.table(
        "Alerts",
        ["alert", "severity", "device", "model", "since", "why"],
        [
            [
                str(a["id"]),
                a["severity"],
                f"{a['device_id']}{' (simulated)' if a.get('simulated') else ''}",
                f"{a['model']} {a['version']}",
                readable(a["opened_at"]),
                a["reason"],
            ]
            for a in items
        ],
    )
    return {"alerts": items}


def _row(window: dict[str, Any]) -> list[str]:
    worst = _worst(window)
    return [
        window["device_id"],
        f"{window['model']} {window['version']}",
        readable(window["at"]),
        str(window["samples"]),
        _verdict(window),
        worst["feature"],
        _score(worst),
        f"{worst['psi_threshold']:.3f}" if worst.get("psi_threshold") is not None else "-",
    ]


def _worst(window: dict[str, Any]) -> dict[str, Any]:
    empty = {"feature": "-", "psi": None, "psi_threshold": None}
    return max(window["features"], key=lambda f: f.get("psi") or 0.0, default=empty)


def _score(feature: dict[str, Any]) -> str:
    return "-" if feature.get("psi") is None else f"{feature['psi']:.3f}"


def _verdict(window: dict[str, Any]) -> str:
    return "severe" if window["severe"] else "drifted" if window["drifted"] else "no"
