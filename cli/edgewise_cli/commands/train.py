"""`edgewise train` and `edgewise convert`: with the parts trainer and converter, where they are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise_cli.commands.profiles import complete
from edgewise_cli.errors import RefusedError, UsageError
from edgewise_cli.shell import Json, Shell, command
from edgewise_cli.worker import models


def add_to(app: typer.Typer) -> None:
    """Add both commands."""
    command(app, "train")(train)
    command(app, "convert")(convert)


def train(
    shell: Shell,
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's TOML file.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Run directory to write. [default: runs/MODEL-DIGEST]", show_default=False)
    ] = None,
) -> Json:
    """Train, evaluate and gate a model; exit status 1 when the gate did not pass."""
    loaded = models.load_config(config)
    folder = out or Path("runs") / f"{models.model_of(loaded)}-{loaded.sha256[:8]}"
    with shell.progress("training") as update:
        judged = models.train(loaded, folder, update)
    report = judged.report
    shell.table(
        f"{folder}: {report['model']}",
        ["check", "value", "bound", "verdict"],
        [
            [c["name"], _number(c["value"]), _number(c["bound"]), "passed" if c["passed"] else "missed"]
            for c in report["gate"]["checks"]
        ],
    )
    shell.say(", ".join(f"{k} {_number(v)}" for k, v in report["metrics"].items() if isinstance(v, int | float)))
    if not judged.passed:
        raise RefusedError(f"{folder} did not pass its gate", code="gate", details={"run": report})
    return {"path": str(folder), **report}


def convert(
    shell: Shell,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    version: Annotated[int, typer.Option(help="The version that the bundles get.", min=1)],
    profile: Annotated[
        list[str] | None, typer.Option("--profile", "-p", help="A target; repeat for several.", autocompletion=complete)
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="e.g. int8; else each profile's default.", show_default=False)
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="Also build the bundle that devices train from.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder to write bundles into.")] = Path("bundles"),
) -> Json:
    """Convert a run for target profiles; exit status 1 when a bundle missed its budget."""
    if not profile and not training:
        raise UsageError("name a --profile (see `edgewise profiles list`), or --training")
    bundles: list[Json] = []
    passed = True
    if profile:
        with shell.progress("converting") as update:
            done = models.convert(run, profile, out, version, precision=precision, progress=update)
        bundles, passed = done.report, done.passed
        _table(shell, bundles)
    document: Json = {"bundles": bundles}
    if training:
        document["training"] = str(models.training_bundle(run, out, version))
        shell.say(f"training bundle: {document['training']}")
    if not passed:
        missed = [b for b in bundles if not b["passed"]]
        for bundle in missed:
            shell.table(
                f"{bundle['profile']}: refused",
                ["check", "measured", "bound", "over by", "verdict"],
                [list(row) for row in bundle["table"]],
            )
        names = ", ".join(b["profile"] for b in missed)
        raise RefusedError(f"the budget is missed for {names}", code="budget", details=document)
    return document


def _table(shell: Shell, bundles: list[Json]) -> None:
    rows = []
    for b in bundles:
        points = None if b["accuracy"] is None else 100 * (b["accuracy"] - b["accuracy_float"])
        rows.append(
            [
                b["profile"],
                f"{b['format']} {b['precision']}",
                f"{b['model_size_bytes'] / 1024:.1f}",
                "-" if b["accuracy"] is None else f"{100 * b['accuracy']:.2f} %",
                "-" if points is None else f"{points:+.2f}",
                f"{b['latency_ms']:.3f}{'' if b['latency_binding'] else ' (this host)'}",
                "passed" if b["passed"] else "refused",
            ]
        )
    shell.table(
        "Bundles",
        ["profile", "form", "KiB", "accuracy", "points to float", "latency ms", "verdict"],
        rows,
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
