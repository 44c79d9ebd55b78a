"""`edgewise rollout`: phases, gates, and what came of them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgewise_cli.client import segment
from edgewise_cli.errors import RefusedError, UsageError
from edgewise_cli.shell import Json, Shell, command
from edgewise_cli.waiting import wait_for
from edgewise_cli.watching import waiting_for

app = typer.Typer(help="Rollouts: start, watch, pause, resume, abort.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ROLLOUT", help="Rollout id.", show_default=False)]
Reason = Annotated[str | None, typer.Option(help="Why; kept in the rollout's history.")]
Timeout = Annotated[float, typer.Option(help="Seconds to watch at most.", min=0)]
_ENDED = ("completed", "aborted")


def parse_phase(text: str) -> dict[str, Any]:
    """`10`, `10:2` (at least two devices) or `10:2:3600` (then wait an hour)."""
    parts = text.rstrip("%").split(":")
    try:
        phase: dict[str, Any] = {"percent": int(parts[0].rstrip("%"))}
        if len(parts) > 1:
            phase["min_devices"] = int(parts[1])
        if len(parts) > 2:
            phase["soak_s"] = float(parts[2])
    except ValueError as error:
        raise UsageError(f"{text!r}: a phase is PERCENT[:MIN_DEVICES[:SOAK_SECONDS]]") from error
    if len(parts) > 3 or not 1 <= phase["percent"] <= 100:
        raise UsageError(f"{text!r}: a phase is PERCENT[:MIN_DEVICES[:SOAK_SECONDS]], 1 to 100 percent")
    return phase


@command(app, "start")
def start(
    shell: Shell,
    model: Annotated[str, typer.Argument(help="The model's name.", show_default=False)],
    version: Annotated[int, typer.Argument(help="The version to roll out.", min=1, show_default=False)],
    group: Annotated[str, typer.Option(help="Devices that shall get it.")] = "all",
    phase: Annotated[
        list[str] | None, typer.Option(help="PERCENT[:MIN_DEVICES[:SOAK_SECONDS]], in order. [default: 10:1, 100]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    max_failed_ratio: Annotated[float, typer.Option(help="Share of exposed devices that may fail.", min=0, max=1)] = 0,
    max_error_ratio: Annotated[float, typer.Option(help="Share of requests that may fail.", min=0, max=1)] = 0.05,
    max_p95_ms: Annotated[float | None, typer.Option(help="Slowest 95th percentile, milliseconds.", min=0)] = None,
    max_drift_alerts: Annotated[int | None, typer.Option(help="Drift alerts that may be open.", min=0)] = None,
    on_breach: Annotated[str, typer.Option(help="What a missed gate does: abort or pause.")] = "abort",
    confirm_within: Annotated[int, typer.Option(help="Seconds in which a device must confirm.", min=1)] = 600,
    offline_after: Annotated[float, typer.Option(help="Seconds after which a silent device does not count.")] = 30,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until it ends.")] = False,
    timeout: Timeout = 3600,
) -> Json:
    """Start a rollout in phases."""
    if on_breach not in ("abort", "pause"):
        raise UsageError("--on-breach is abort or pause")
    gates: dict[str, Any] = {
        "max_failed_ratio": max_failed_ratio,
        "max_error_ratio": max_error_ratio,
        "on_breach": on_breach,
    }
    if max_p95_ms is not None:
        gates["max_p95_ms"] = max_p95_ms
    if max_drift_alerts is not None:
        gates["max_drift_alerts"] = max_drift_alerts
    phases = [parse_phase(p) for p in phase or ("10:1", "100")]
    body = {
        "model": model,
        "version": version,
        "group": group,
        "phases": phases,
        "gates": gates,
        "confirm_within_s": confirm_within,
        "offline_after_s": offline_after,
        **({"name": name} if name else {}),
    }
    made: Json = shell.client.post("/rollouts", body)
    shell.say(f"rollout {made['id']}: {model} {version} to {group}, {len(phases)} phase(s)")
    return _watch(shell, made["id"], timeout) if watch else made


@command(app, "list")
def list_rollouts(
    shell: Shell,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    status: Annotated[str | None, typer.Option(help="running, paused, completed or aborted.")] = None,
) -> Json:
    """List rollouts, newest first."""
    items = shell.client.get("/rollouts", model=model, status=status)["rollouts"]
    rows = [
        [r["id"], f"{r['model']} {r['version']}", r["group"], r["status"], f"{r['phase'] + 1}/{len(r['phases'])}"]
        for r in items
    ]
    shell.table("Rollouts", ["rollout", "model", "group", "status", "phase"], rows)
    return {"rollouts": items}


@command(app, "status")
def status(
    shell: Shell,
    rollout: Id,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until it ends.")] = False,
    timeout: Timeout = 3600,
) -> Json:
    """Show a rollout; with --watch the exit status is 1 when it was aborted."""
    if watch:
        return _watch(shell, rollout, timeout)
    found = _get(shell, rollout)
    _table(shell, found)
    return found


@command(app, "pause")
def pause(shell: Shell, rollout: Id, reason: Reason = None) -> Json:
    """Expose no further device until it is resumed."""
    return _act(shell, rollout, "pause", reason)


@command(app, "resume")
def resume(shell: Shell, rollout: Id, reason: Reason = None) -> Json:
    """Go on with a paused rollout."""
    return _act(shell, rollout, "resume", reason)


@command(app, "abort")
def abort(shell: Shell, rollout: Id, reason: Reason = None) -> Json:
    """Stop, and revert the exposed devices to the last good version."""
    return _act(shell, rollout, "abort", reason)


def _act(shell: Shell, rollout: str, verb: str, reason: str | None) -> Json:
    found: Json = shell.client.post(f"/rollouts/{segment(rollout)}/{verb}", {"reason": reason} if reason else {})
    shell.say(f"rollout {rollout}: {found['status']}")
    return found


def _get(shell: Shell, rollout: str) -> Json:
    found: Json = shell.client.get(f"/rollouts/{segment(rollout)}")
    return found


def _watch(shell: Shell, rollout: str, timeout: float) -> Json:
    told, waited = 0, ""
    with shell.progress(f"rollout {rollout}") as update:

        def seen(found: Json) -> None:
            nonlocal told, waited
            for step in found["history"][told:]:
                who = f" {step['device_id']}" if step.get("device_id") else ""
                shell.say(f"  {step['kind']}{who}{': ' + step['reason'] if step.get('reason') else ''}")
            told = len(found["history"])
            counts = found["counts"]
            done = counts["committed"] / max(1, counts["cohort"])
            waiting = waiting_for(found)
            text = f"{found['status']}: {counts['committed']} of {counts['cohort']} devices"
            update(f"{text}; {waiting}" if waiting else text, done)
            if waiting != waited and not waiting.startswith("soaking"):
                waited = waiting
                if waiting:
                    shell.say(f"  {waiting}")

        found = wait_for(
            lambda: _get(shell, rollout),
            lambda r: r["status"] in _ENDED,
            timeout_s=timeout,
            what=f"the end of rollout {rollout}",
            every_s=0.4,
            seen=seen,
        )
    _table(shell, found)
    if found["status"] == "aborted":
        raise RefusedError(
            f"rollout {rollout} was aborted: {found['reason']}", code="rollout-aborted", details={"rollout": found}
        )
    return found


def _table(shell: Shell, found: Json) -> None:
    counts = found["counts"]
    shell.table(
        f"{found['id']}: {found['model']} {found['version']} to {found['group']}: {found['status']}"
        + (f" ({found['reason']})" if found.get("reason") else ""),
        ["device", "state", "before", "error"],
        [
            [d["device_id"], d["state"], str(d.get("previous_version") or "-"), d.get("error") or ""]
            for d in found.get("devices", [])
        ],
    )
    for device in found.get("barred", []):
        shell.say(f"{device['device_id']} gets no new model: {device['reason']}")
    shell.say(
        f"phase {found['phase'] + 1} of {len(found['phases'])}; "
        + ", ".join(f"{number} {name}" for name, number in counts.items())
    )
