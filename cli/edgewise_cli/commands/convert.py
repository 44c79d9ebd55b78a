"""`edgewise convert`: the best form of a model for each target; `edgewise passes`: what can be done to one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise_cli.commands.profiles import complete
from edgewise_cli.converting import convert_model
from edgewise_cli.errors import RefusedError, UsageError
from edgewise_cli.importing import TASKS, read_labels
from edgewise_cli.installed import need
from edgewise_cli.shell import Json, Shell, command
from edgewise_cli.worker import models

_SAMPLES = "Samples (a run brings its own)"
_SEARCH = "Search"
_WORDS = "What the bundle says"
PROVE = ("auto", "always", "never")
OBJECTIVES = ("latency", "size")


def add_to(app: typer.Typer) -> None:
    """Add both commands."""
    command(app, "convert")(convert)
    command(app, "passes")(passes)


def convert(
    shell: Shell,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run directory, an .onnx, .tflite or .pt2 file, or MODULE:FACTORY of a torch module.",
            show_default=False,
        ),
    ],
    version: Annotated[int, typer.Option(help="The version that the bundles get.", min=1)],
    profile: Annotated[
        list[str] | None,
        typer.Option(
            "--profile",
            "-p",
            help="A target: an id, or a .toml file of your own; repeat for several.",
            autocompletion=complete,
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write bundles into.")] = Path("bundles"),
    report: Annotated[
        Path | None, typer.Option(help="Folder for reports. [default: beside the bundles]", show_default=False)
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="Also build the bundle that devices train from (of a run).")
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Inputs as .npz, .npy or .safetensors, by name, to calibrate on; `y` are labels.",
            rich_help_panel=_SAMPLES,
            show_default=False,
        ),
    ] = None,
    heldout: Annotated[
        Path | None,
        typer.Option(
            "--heldout",
            "--samples",
            help="The same, to judge on. One file for both is split.",
            rich_help_panel=_SAMPLES,
            show_default=False,
        ),
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            help="INPUT=OUTPUT of a stateful model; repeat for several. Samples without it are sequences.",
            rich_help_panel=_SAMPLES,
        ),
    ] = None,
    accuracy_drop: Annotated[
        float | None,
        typer.Option(
            help="Points that may be lost. [default: the profile's]",
            min=0,
            max=100,
            rich_help_panel=_SEARCH,
            show_default=False,
        ),
    ] = None,
    objective: Annotated[str, typer.Option(help="latency or size.", rich_help_panel=_SEARCH)] = "latency",
    metric: Annotated[
        str, typer.Option(help="top1, auc-score, auc-reconstruction or agreement.", rich_help_panel=_SEARCH)
    ] = "",
    min_metric: Annotated[
        float | None,
        typer.Option(
            help="Least value of the metric, 0 to 1.", min=0, max=1, rich_help_panel=_SEARCH, show_default=False
        ),
    ] = None,
    max_latency: Annotated[
        float | None,
        typer.Option(
            help="Milliseconds, in place of the profile's budget.",
            min=0,
            rich_help_panel=_SEARCH,
            show_default=False,
        ),
    ] = None,
    max_size: Annotated[
        int | None,
        typer.Option(help="KiB, in place of the profile's budget.", min=1, rich_help_panel=_SEARCH, show_default=False),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Forms of this engine alone; an optional one (iree) is tried only so.",
            rich_help_panel=_SEARCH,
            show_default=False,
        ),
    ] = None,
    trials: Annotated[int, typer.Option(help="Of mixed precision.", min=1, max=500, rich_help_panel=_SEARCH)] = 24,
    precision: Annotated[
        str | None,
        typer.Option(
            help="One form without a search, e.g. int8 or onnx-float16; `default` is each profile's first.",
            rich_help_panel=_SEARCH,
            show_default=False,
        ),
    ] = None,
    prove: Annotated[
        str, typer.Option(help="auto, always or never: run on the target's instructions.", rich_help_panel=_SEARCH)
    ] = "auto",
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Make and measure everything anew.", rich_help_panel=_SEARCH)
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="[default: the file's or run's]", rich_help_panel=_WORDS, show_default=False)
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="classification, regression, embedding or other.", rich_help_panel=_WORDS, show_default=False
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="A text file with one class a line.", rich_help_panel=_WORDS, show_default=False),
    ] = None,
    origin: Annotated[
        str, typer.Option(help="Where the model comes from; signed with it.", rich_help_panel=_WORDS)
    ] = "",
) -> Json:
    """Find the best form of a model for each target, and bundle it; exit status 1 when none keeps its budget.

    Every form that the profile's engines allow is made, weighed, held against the float model on samples that
    calibration never saw, and timed in turn. What wins is the fastest (or smallest) within the accuracy budget; float,
    if nothing is better. A repeat of an unchanged conversion comes from the cache.
    """
    if not profile and not training:
        raise UsageError("name a --profile (see `edgewise profiles list`), or --training")
    _check(objective, prove, task)
    request: Json = {
        "model": model,
        "version": version,
        "calibration": str(calibration or ""),
        "heldout": str(heldout or ""),
        "state": tuple(_pair(text) for text in state or ()),
        "name": name or "",
        "task": task or "",
        "labels": read_labels(labels) if labels else (),
        "metric": metric,
        "origin": origin,
        "objective": objective,
        "accuracy_drop": accuracy_drop,
        "min_metric": min_metric,
        "max_latency_ms": max_latency,
        "max_size_kib": max_size,
        "engine": engine,
        "trials": trials,
        "form": precision,
        "prove": prove,
    }
    document: Json = {"bundles": []}
    refused: list[str] = []
    if profile:
        with shell.progress("converting") as update:
            found = convert_model(request, profile, out, reports=report, cached=not no_cache, progress=update)
        for outcome in found:
            _show(shell, outcome)
        document["bundles"] = [outcome.document() for outcome in found]
        if len(found) > 1:
            _table(shell, [b for b in document["bundles"] if b["passed"]])
        refused = [outcome.profile for outcome in found if not outcome.passed]
    if training:
        document["training"] = str(models.training_bundle(Path(model), out, version))
        shell.say(f"training bundle: {document['training']}")
    if refused:
        raise RefusedError(f"the budget is missed for {', '.join(refused)}", code="budget", details=document)
    return document


def passes(shell: Shell) -> Json:
    """List what can be done to a model on its way to a device."""
    registry = need("edgewise_converter.passes.registry", "converter")
    entries = list(registry.PASSES.values())
    shell.table(
        "Passes",
        ["pass", "what", "reads", "makes", "precision", "needs"],
        [
            [e.name, e.title, e.reads or "torch", e.makes, e.precision or "as before", ", ".join(e.needs) or "-"]
            for e in entries
        ],
    )
    keys = ("name", "title", "reads", "makes", "precision", "needs")
    return {"passes": [{key: getattr(e, key) for key in keys} for e in entries]}


def _check(objective: str, prove: str, task: str | None) -> None:
    for option, value, known in (
        ("--objective", objective, OBJECTIVES),
        ("--prove", prove, PROVE),
        ("--task", task or "other", TASKS),
    ):
        if value not in known:
            raise UsageError(f"{option} {value[:40]!r} is none of {', '.join(known)}")


def _pair(text: str) -> tuple[str, str]:
    name, found, other = text.partition("=")
    if not (name and found and other):
        raise UsageError(f"--state {text[:80]!r}: write INPUT=OUTPUT")
    return name, other


def _show(shell: Shell, outcome: Any) -> None:
    """The Pareto table, and what became of the winner."""
    reporting = need("edgewise_converter.reporting.table", "converter")
    columns, rows = reporting.front(outcome.search)
    shell.table(f"{outcome.profile}: {outcome.model}", list(columns), [list(row) for row in rows])
    if rest := reporting.others(outcome.search):
        shell.say("not taken:")
        for why, names in rest:
            shell.say(f"  {why}: {'; '.join(names)}")
    for note in outcome.search.notes:
        shell.say(f"note: {note}")
    if not outcome.passed:
        shell.say(f"{outcome.profile}: no form is within the budget; there is no bundle of version {outcome.version}")
        return
    again = " (unchanged: from the cache)" if outcome.cached else ""
    shell.say(f"{outcome.path}: {outcome.search.winner}{again}")
    if outcome.unproven:
        shell.say(f"WARNING: {outcome.unproven}")


def _table(shell: Shell, bundles: list[Json]) -> None:
    """The bundles of several profiles, a line each."""
    rows = []
    for b in bundles:
        accuracy, plain = b.get("accuracy"), b.get("accuracy_float")
        rows.append(
            [
                b["profile"],
                f"{b['format']} {b['precision']}",
                f"{b['model_size_bytes'] / 1024:.1f}",
                f"{100 * b['agreement']:.2f} % agree" if accuracy is None else f"{100 * accuracy:.2f} %",
                "-" if accuracy is None or plain is None else f"{100 * (accuracy - plain):+.2f}",
                "-"
                if b["latency_ms"] is None
                else f"{b['latency_ms']:.3f}{'' if b['latency_binding'] else ' (this host)'}",
            ]
        )
    shell.table("Bundles", ["profile", "form", "KiB", "accuracy", "points to float", "latency ms"], rows)
