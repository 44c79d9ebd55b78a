"""`edgewise federate`: rounds of learning on the devices."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from edgewise_protocol.targets import training_path

from edgewise_cli.client import segment
from edgewise_cli.commands.rollout import parse_phase
from edgewise_cli.errors import RefusedError, UsageError
from edgewise_cli.shell import Json, Shell, command
from edgewise_cli.waiting import wait_for

app = typer.Typer(help="Federated learning: start, watch, stop.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="FEDERATION", help="Federation id.", show_default=False)]
Watch = Annotated[bool, typer.Option("--watch", help="Stay until it ends.")]
Timeout = Annotated[float, typer.Option(help="Seconds to watch at most.", min=0)]
_RUNNING = ("running", "promoting")


@command(app, "start")
def start(
    shell: Shell,
    model: Annotated[str, typer.Argument(help="The model's name.", show_default=False)],
    channel: Annotated[str, typer.Option(help="A channel that opted in (NAME:auto).")],
    lr: Annotated[
        float, typer.Option(help="Learning rate: begin with the one that the model was trained with.", min=1e-6)
    ],
    training_version: Annotated[int, typer.Option(help="Version of the training bundle.", min=1)] = 1,
    base_version: Annotated[int | None, typer.Option(help="Version that the devices serve now.", min=1)] = None,
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    group: Annotated[str | None, typer.Option(help="Ask only this group.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds.", min=1)] = 5,
    min_clients: Annotated[int, typer.Option(help="Updates that a round needs.", min=1)] = 2,
    epochs: Annotated[int, typer.Option(help="Epochs on a device in each round.", min=1)] = 1,
    batch_size: Annotated[int, typer.Option(help="Samples in a step.", min=1)] = 32,
    mu: Annotated[float, typer.Option(help="FedProx's proximal weight; 0 is plain averaging.", min=0)] = 0.0,
    strategy: Annotated[str, typer.Option(help="How updates are merged.")] = "fedavg",
    round_timeout: Annotated[float, typer.Option(help="Seconds that a round may take.", min=1)] = 300,
    profile: Annotated[list[str] | None, typer.Option(help="Profiles to convert a result for.")] = None,
    phase: Annotated[
        list[str] | None, typer.Option(help="Roll a promoted result out: PERCENT[:MIN_DEVICES[:SOAK_SECONDS]].")
    ] = None,
    watch: Watch = False,
    timeout: Timeout = 3600,
) -> Json:
    """Start federated rounds; with --phase, a result that passes the gate is rolled out."""
    if base_version is None and not profile:
        raise UsageError("give --base-version or --profile: what the result is to be converted for")
    body: dict[str, Any] = {
        "name": name or f"{model}-federation",
        "model": model,
        "channel": channel,
        "training_path": training_path(channel, model, training_version),
        "rounds": rounds,
        "min_clients": min_clients,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "mu": mu,
        "strategy": strategy,
        "round_timeout_s": round_timeout,
    }
    optional = {"group": group, "base_version": base_version, "profiles": profile}
    body |= {key: value for key, value in optional.items() if value}
    if phase:
        body["rollout"] = {"phases": [parse_phase(p) for p in phase]}
    made: Json = shell.client.post("/federations", body)
    shell.say(f"federation {made['id']}: {rounds} round(s) of {model} on {channel}")
    return _watch(shell, made["id"], timeout) if watch else made


@command(app, "list")
def list_federations(shell: Shell) -> Json:
    """List federations."""
    items = shell.client.get("/federations")["federations"]
    shell.table(
        "Federations",
        ["federation", "model", "channel", "status", "round", "promoted"],
        [
            [
                f["id"],
                f["model"],
                f["channel"],
                f["status"],
                f"{f['round']}/{f['rounds_wanted']}",
                str(f.get("promoted_version") or "-"),
            ]
            for f in items
        ],
    )
    return {"federations": items}


@command(app, "status")
def status(shell: Shell, federation: Id, watch: Watch = False, timeout: Timeout = 3600) -> Json:
    """Show a federation's rounds; with --watch the exit status is 1 when it failed."""
    if watch:
        return _watch(shell, federation, timeout)
    found = _get(shell, federation)
    _table(shell, found)
    return found


@command(app, "stop")
def stop(shell: Shell, federation: Id) -> Json:
    """Stop a federation; its closed rounds stay."""
    found: Json = shell.client.post(f"/federations/{segment(federation)}/stop")
    shell.say(f"federation {federation}: {found['status']}")
    return found


def _get(shell: Shell, federation: str) -> Json:
    found: Json = shell.client.get(f"/federations/{segment(federation)}")
    return found


def _watch(shell: Shell, federation: str, timeout: float) -> Json:
    closed: set[int] = set()
    with shell.progress(f"federation {federation}") as update:

        def seen(found: Json) -> None:
            for row in found["rounds"]:
                if row["state"] in ("closed", "failed") and row["number"] not in closed:
                    closed.add(row["number"])
                    shell.say("  " + _round_line(row))
            update(f"{found['status']}: round {found['round']}", len(closed) / max(1, found["rounds_wanted"]))

        found = wait_for(
            lambda: _get(shell, federation),
            lambda f: f["status"] not in _RUNNING,
            timeout_s=timeout,
            what=f"the end of federation {federation}",
            every_s=0.4,
            seen=seen,
        )
    _table(shell, found)
    if found["status"] == "failed":
        raise RefusedError(
            f"federation {federation} failed: {found['reason']}",
            code="federation-failed",
            details={"federation": found},
        )
    return found


def _round_line(row: dict[str, Any]) -> str:
    metrics = row.get("metrics") or {}
    if row["state"] == "failed":
        return f"round {row['number']} failed: {row.get('reason', '')}"
    parts = [f"{metrics.get('clients', 0):g} clients", f"{metrics.get('samples', 0):g} samples"]
    if "loss_before" in metrics and "loss_after" in metrics:
        parts.append(f"local loss {metrics['loss_before']:.3f} to {metrics['loss_after']:.3f}")
    return f"round {row['number']}: {', '.join(parts)}"


def _table(shell: Shell, found: Json) -> None:
    rows = []
    for row in found.get("rounds", []):
        for client in row.get("clients", []):
            metrics = client.get("metrics") or {}
            rows.append(
                [
                    str(row["number"]),
                    row["state"],
                    client["device_id"] + (" (simulated)" if client.get("simulated") else ""),
                    client["state"],
                    str(client.get("samples") or "-"),
                    *(f"{metrics[k]:.3f}" if k in metrics else "-" for k in ("loss_before", "loss_after")),
                    client.get("error") or "",
                ]
            )
    shell.table(
        f"{found['id']}: {found['model']} on {found['channel']}: {found['status']}"
        + (f" ({found['reason']})" if found.get("reason") else ""),
        ["round", "state", "device", "update", "samples", "loss before", "loss after", "error"],
        rows,
    )
    if found.get("promoted_version"):
        shell.say(f"promoted as version {found['promoted_version']}; rollout: {found.get('rollout_id') or 'none'}")
