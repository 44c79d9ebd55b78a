"""`edgewise gate`: tables of anomaly scores against a target, as `edgewise convert --min-metric` judges."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from edgewise_cli.errors import RefusedError, UsageError
from edgewise_cli.importing import EXTRA
from edgewise_cli.installed import need
from edgewise_cli.shell import Json, Shell, command
from edgewise_cli.worker.models import converter_errors


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "gate")(gate)


def gate(
    shell: Shell,
    scores: Annotated[
        list[Path], typer.Argument(metavar="SCORES...", help="CSV of name,score; one a machine.", show_default=False)
    ],
    target: Annotated[float, typer.Option(help="The least that passes, from 0 to 1.", show_default=False)],
    metric: Annotated[str, typer.Option(help="What is computed of the scores: auc.")] = "auc",
    label_column: Annotated[
        str | None,
        typer.Option(
            help="Heading or number of the column with labels. [default: the third, else the names' beginnings, "
            "anomaly_ and normal_]",
            show_default=False,
        ),
    ] = None,
) -> Json:
    """Hold anomaly scores against a target; exit status 1 below it.

    The AUC is computed for each file, and their mean is judged, as MLPerf Tiny does it.
    """
    if metric != "auc":
        raise UsageError(f"--metric {metric[:40]!r}: scores are judged by auc")
    files = need("edgewise_converter.metrics.score_files", EXTRA)
    gates = need("edgewise_converter.metrics.gate", EXTRA)
    with converter_errors():
        found = files.judge_files(scores, label_column)
        check = gates.target_check("auc", found.value, target)
    shell.table(
        "",
        ["scores", "samples", "anomalies", "auc"],
        [[f.file, str(f.samples), str(f.anomalies), f"{f.auc:.4f}"] for f in found.files],
    )
    document = {"metric": metric, "target": target, "passed": check.passed, **msgspec.to_builtins(found)}
    many = f", the mean of {len(found.files)} files" if len(found.files) > 1 else ""
    told = gates.sentence(check) + many
    if not check.passed:
        raise RefusedError(told, code="gate", details=document)
    shell.say(told)
    return document
