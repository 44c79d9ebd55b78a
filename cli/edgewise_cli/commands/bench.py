"""`edgewise bench`: latency of bundles and model files here, or of a served model on a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.latencies import Latencies, bars

from edgewise_cli import files, served
from edgewise_cli.commands.profiles import complete
from edgewise_cli.commands.profiles import load as load_profile
from edgewise_cli.errors import FilesError, RefusedError, UsageError
from edgewise_cli.importing import EXTRA
from edgewise_cli.installed import need
from edgewise_cli.shell import Json, Shell, command
from edgewise_cli.worker.models import converter_errors

_BUNDLE: Final = ".ewb"
_COLUMNS: Final = ("median ms", "p95", "p99", "slowest", "calls/s", "calls")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "bench")(bench)


def bench(
    shell: Shell,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE|MODEL...",
            help="Bundles, .onnx, .ort or .tflite files; with --url, names of served models, or their bundles.",
            show_default=False,
        ),
    ],
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", "-p", help="Whose budget counts. [default: each bundle's own]", autocompletion=complete
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="For each, warm-up included.")] = 3.0,
    threads: Annotated[int, typer.Option(help="Threads of one call.")] = 1,
    sample: Annotated[
        Path | None, typer.Option(help="Inputs for model files; a bundle brings its own.", show_default=False)
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A device's endpoint, e.g. http://device:8089.", show_default=False)
    ] = None,
    run_machine_code: Annotated[
        bool,
        typer.Option(
            "--run-machine-code",
            help="Time bundles of compiled models (IREE, C99), too: their code runs as you, and may do what you may. "
            "For bundles whose maker you trust.",
        ),
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the times into this PNG file.", show_default=False)] = None,
) -> Json:
    """Measure latency; exit status 1 where a budget that binds is missed.

    Several are measured in turn, in short rounds. Where it was measured, and whether a profile's budget binds there,
    is always said.
    """
    if url is not None:
        if profile or sample or threads != 1 or run_machine_code:
            raise UsageError(
                "--profile, --sample, --threads and --run-machine-code are of models that run here; --url asks a device"
            )
        return _served(shell, url, what, seconds, plot)
    settings = {"seconds": seconds, "threads": threads, "sample": sample, "machine_code": run_machine_code}
    return _here(shell, [Path(w) for w in what], profile, settings, plot)


def _here(
    shell: Shell,
    paths: Sequence[Path],
    profile: str | None,
    settings: dict[str, Any],
    plot: Path | None,
) -> Json:
    benching = need("edgewise_converter.benching.bench", EXTRA)
    wanted = load_profile(profile) if profile else None
    with shell.progress("measuring") as update, converter_errors(), _bundle_errors():
        done = benching.bench(paths, wanted, **settings, progress=update)
    report = done.report
    first = report.timed[0].latencies.median_ms
    shell.table(
        "",
        ["what", "form", "engine", "KiB", *_COLUMNS, "peak MiB", "against the first"],
        [
            [
                t.name,
                f"{t.format} {t.precision}",
                f"{t.engine} {t.engine_version}",
                f"{t.size_bytes / 1024:.1f}",
                *_cells(t.latencies),
                f"{t.peak_mib:.0f}",
                f"{first / t.latencies.median_ms:.2f} x" if t.latencies.median_ms else "-",
            ]
            for t in report.timed
        ],
    )
    for t in report.timed:
        _draw(shell, f"{t.name}: {t.inputs} inputs, {report.threads} thread(s)", t)
        for check in t.checks:
            verdict = ("kept" if check.passed else "missed") + ("" if check.binding else ", does not bind here")
            shell.say(f"  {check.name}: {check.value:.4g} {check.unit}, at most {check.bound:.4g}: {verdict}")
    document = {**msgspec.to_builtins(report), "passed": report.passed}
    _plot(shell, plot, [t.name for t in report.timed], done.times_ns, report.timed[0].measured_on, document)
    if not report.passed:
        missed = [f"{t.name}: {c.name}" for t in report.timed for c in t.checks if c.binding and not c.passed]
        raise RefusedError(f"the budget is missed: {', '.join(missed)}", code="budget", details=document)
    return document


def _served(shell: Shell, url: str, what: Sequence[str], seconds: float, plot: Path | None) -> Json:
    asked = [_asked(one) for one in what]
    with shell.progress("measuring") as update:
        done = served.bench_served(url, asked, seconds, update)
    report = done.report
    shell.table(
        f"{report.server} at {url}",
        ["model", "version", "platform", *_COLUMNS, "engine alone, mean ms"],
        [
            [
                t.name,
                t.version,
                t.platform,
                *_cells(t.latencies),
                "not told" if t.on_device is None else f"{t.on_device.mean_ms:.3f}",
            ]
            for t in report.timed
        ],
    )
    for t in report.timed:
        _draw(shell, f"{t.name}: {t.inputs} inputs, one request at a time", t)
        if t.on_device is not None and t.on_device.shared:
            shell.say("  the device answered others meanwhile: the engine's mean is also theirs")
    document: Json = msgspec.to_builtins(report)
    _plot(shell, plot, [t.name for t in report.timed], done.times_ns, report.timed[0].measured_on, document)
    return document


def _asked(one: str) -> served.Asked:
    if not one.endswith(_BUNDLE):
        return served.Asked(model=one)
    subject = need("edgewise_converter.benching.subject", EXTRA)
    with converter_errors(), _bundle_errors():
        manifest, _, inputs = subject.read_bundle(Path(one))
    return served.Asked(model=manifest.model, version=str(manifest.version), inputs=inputs)


@contextmanager
def _bundle_errors() -> Iterator[None]:
    """Turn the errors of a damaged bundle into this package's."""
    try:
        yield
    except ProtocolError as error:
        raise FilesError(str(error), code=error.code) from error


def _cells(found: Latencies) -> list[str]:
    return [
        f"{found.median_ms:.3f}",
        f"{found.p95_ms:.3f}",
        f"{found.p99_ms:.3f}",
        f"{found.maximum_ms:.3f}",
        f"{found.per_second:.0f}",
        str(found.calls),
    ]


def _draw(shell: Shell, title: str, timed: Any) -> None:
    shell.say(f"{title}; measured {timed.measured_on}")
    for line in bars(timed.histogram):
        shell.say(f"  {line}")


def _plot(
    shell: Shell, path: Path | None, names: Sequence[str], times: Sequence[list[int]], where: str, document: Json
) -> None:
    if path is None:
        return
    drawing = need("edgewise_converter.reporting.latency_plot", EXTRA)
    with converter_errors():
        picture = drawing.draw(dict(zip(_distinct(names), times, strict=True)), where)
    files.write(path, picture)
    document["plot"] = str(path)
    shell.say(f"plot: {path}")


def _distinct(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]
