"""`edgewise train`: with the part trainer, where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise_cli.errors import RefusedError
from edgewise_cli.shell import Json, Shell, command
from edgewise_cli.worker import models


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "train")(train)


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


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
