"""`edgewise prove`: golden inputs of bundles on the instruction sets of their targets, and the sysroots for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from edgewise_profiles import catalogue
from edgewise_profiles.schema import Profile
from edgewise_protocol.errors import ProtocolError

from edgewise_cli.commands.profiles import complete
from edgewise_cli.commands.profiles import load as load_profile
from edgewise_cli.errors import FilesError, RefusedError, UsageError
from edgewise_cli.importing import EXTRA
from edgewise_cli.installed import need
from edgewise_cli.shell import Json, Shell, command
from edgewise_cli.worker.models import converter_errors

HOST: Final = "host"
ALL: Final = "all"
_MAX_BUNDLES: Final = 200
_NO_LATENCY: Final = "Emulation proves loading and numerics; it says nothing of latency."


@dataclass(frozen=True)
class _Row:
    """One run, or why there is none."""

    bundle: str
    on: str
    engine: str
    result: Any
    why_not: str = ""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "prove")(prove)


def prove(
    shell: Shell,
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="BUNDLE...", help="Bundles, .ewb.", show_default=False)
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(
            help="Where: a profile, host, or all (host and every profile with a sysroot here); may be repeated. "
            "[default: host and each bundle's own profile]",
            show_default=False,
            autocompletion=complete,
        ),
    ] = None,
    prepare: Annotated[
        list[str] | None,
        typer.Option(
            help="Build the sysroot of a profile first, or of all; may be repeated. Needs root.",
            show_default=False,
            autocompletion=complete,
        ),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(help="URL of a mirror of Debian to build from. [default: apt's own]", show_default=False),
    ] = None,
    run_machine_code: Annotated[
        bool,
        typer.Option(
            "--run-machine-code",
            help="Run bundles of compiled models (IREE) on this machine, too: their code runs as you, and may do what "
            "you may. For bundles whose maker you trust.",
        ),
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the sysroots that are here.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove sysroots that no profile needs any more.")] = False,
) -> Json:
    """Run bundles' golden inputs on their targets' instruction sets; exit status 1 where an answer differs.

    On the host natively, and on the profile's processor in an emulator. Nothing is ever told of latency.
    """
    if not (bundles or prepare or list_ or prune):
        raise UsageError("name bundles, or say --prepare PROFILE, --list or --prune")
    if len(bundles or []) > _MAX_BUNDLES:
        raise UsageError(f"{len(bundles or [])} bundles; at most {_MAX_BUNDLES} are proven at once")
    document: Json = {}
    if prepare:
        document["prepared"] = _prepare(shell, prepare, mirror)
    if prune:
        document["removed"] = _prune(shell)
    if list_:
        document["sysroots"] = _list(shell)
    if bundles:
        rows = _prove(shell, bundles, on or [], run_machine_code)
        _tell(shell, rows)
        document |= _document(rows)
        _refuse_failures(rows, document)
    return document


def _prove(shell: Shell, bundles: Sequence[Path], on: Sequence[str], trusted: bool) -> list[_Row]:
    proving = need("edgewise_converter.proof.prove", EXTRA)
    errors = need("edgewise_converter.errors", EXTRA)
    cannot = (errors.NotPreparedError, errors.NoEmulationError, errors.ProofToolsError, errors.ProofMissingError)
    rows: list[_Row] = []
    with shell.progress("proving") as update:
        for done, path in enumerate(bundles):
            with _told():
                golden = proving.read(path)
                engine = golden.manifest.requires.engine
                wanted = _wanted(golden.manifest, on)
            for at, (name, place) in enumerate(wanted):
                update(f"{path.name} on {name}", (done + at / len(wanted)) / len(bundles))
                with _told():
                    try:
                        if place is None:
                            found = proving.on_host(golden, machine_code=trusted)
                            rows.append(_Row(path.name, name, proving.host_engine(engine), found))
                        else:
                            found = proving.prove_on(golden, load_profile(name), place=place, machine_code=trusted)
                            rows.append(_Row(path.name, name, engine, found))
                    except cannot as error:
                        rows.append(_Row(path.name, name, engine, None, f"{error.code}: {error}"))
    return rows


def _wanted(manifest: Any, on: Sequence[str]) -> list[tuple[str, str | None]]:
    """Names and places to run a bundle on; a place of None is the host for itself."""
    if not on or manifest.requires.engine == "c99":
        # Firmware of a microcontroller runs nowhere else.
        own = load_profile(manifest.profile)
        host: list[tuple[str, str | None]] = [] if own.mcu else [(HOST, None)]
        return [*host, *((own.id, place) for place in _places(manifest, own) if place != "native")]
    wanted: list[tuple[str, str | None]] = []
    for name in on:
        if name in (HOST, ALL):
            wanted.append((HOST, None))
        if name == ALL:
            sysroots = need("edgewise_converter.proof.sysroot", EXTRA)
            wanted += [(p.id, "emulated") for p in _emulated(manifest) if sysroots.find(p)]
        elif name != HOST:
            wanted += [(name, place) for place in _places(manifest, load_profile(name))]
    return list(dict.fromkeys(wanted))


def _places(manifest: Any, profile: Profile) -> Sequence[str]:
    proving = need("edgewise_converter.proof.prove", EXTRA)
    found: Sequence[str] = proving.places(manifest, profile, need("edgewise_converter.hardware", EXTRA).read_host())
    return found


def _emulated(manifest: Any) -> list[Profile]:
    """Profiles that can be emulated, and have the bundle's engine."""
    engine = manifest.requires.engine
    return [p for p in catalogue.load_all() if p.emulation and engine in {e.name for e in p.engines}]


def _prepare(shell: Shell, names: Sequence[str], mirror: str | None) -> list[Json]:
    sysroots = need("edgewise_converter.proof.sysroot", EXTRA)
    profiles = [p for p in catalogue.load_all() if p.emulation] if ALL in names else [load_profile(n) for n in names]
    found = []
    for profile in profiles:
        with shell.progress(f"{profile.id}: preparing") as update, _told():
            sysroot = sysroots.ensure(
                profile,
                progress=lambda text, share, update=update, name=profile.id: update(f"{name}: {text}", share),
                mirror=mirror,
            )
        shell.say(f"{profile.id}: {sysroot.folder}, {sysroot.bytes >> 20} MiB")
        found.append({"profile": profile.id, "folder": str(sysroot.folder), "bytes": sysroot.bytes})
    return found


def _list(shell: Shell) -> list[Json]:
    sysroots = need("edgewise_converter.proof.sysroot", EXTRA)
    with _told():
        found = sysroots.listing()
        needed = _needed(sysroots)
    rows = [
        {
            "profile": s.recipe.profile,
            "processor": s.recipe.cpu,
            "system": f"Debian {s.recipe.suite} {s.recipe.architecture}",
            "wheels": list(s.recipe.requirements),
            "mib": s.bytes >> 20,
            "needed": s.recipe.digest in needed,
            "folder": str(s.folder),
        }
        for s in found
    ]
    shell.table(
        "",
        ["profile", "processor", "system", "wheels", "MiB", "state", "folder"],
        [
            [
                r["profile"],
                r["processor"],
                r["system"],
                " ".join(r["wheels"]),
                str(r["mib"]),
                "current" if r["needed"] else "outdated",
                r["folder"],
            ]
            for r in rows
        ],
    )
    return rows


def _prune(shell: Shell) -> list[str]:
    sysroots = need("edgewise_converter.proof.sysroot", EXTRA)
    with _told():
        needed = _needed(sysroots)
        gone = [str(s.folder) for s in sysroots.prune(lambda recipe: recipe.digest in needed)]
    for folder in gone:
        shell.say(f"removed {folder}")
    return gone


def _needed(sysroots: Any) -> set[str]:
    """Digests of the recipes that the catalogue's profiles have now."""
    return {sysroots.recipe_here(profile).digest for profile in catalogue.load_all() if profile.emulation}


def _tell(shell: Shell, rows: Sequence[_Row]) -> None:
    shell.table(
        "",
        ["bundle", "on", "processor", "engine", "golden", "same class", "largest error", "allowed", "verdict"],
        [_cells(row) for row in rows],
    )
    if any(row.result is not None and row.result.proof.emulated for row in rows):
        shell.say(_NO_LATENCY)


def _cells(row: _Row) -> list[str]:
    if row.result is None:
        return [row.bundle, row.on, "-", row.engine, "-", "-", "-", "-", f"not run: {row.why_not}"]
    found = row.result
    worst = max(found.outputs, key=lambda o: (o.outside, o.max_abs_error / (o.atol or 1.0)), default=None)
    return [
        row.bundle,
        row.on,
        f"{found.where} ({found.proof.machine})",
        f"{row.engine} {found.proof.engine_version}".rstrip(),
        str(found.samples),
        f"{found.top1:.0%}",
        "-" if worst is None else f"{worst.max_abs_error:.3g}",
        "-" if worst is None else f"{worst.atol:g}" + (f" + {worst.rtol:g} |y|" if worst.rtol else ""),
        "agrees" if found.passed else f"DIFFERS: {found.reason}",
    ]


def _document(rows: Sequence[_Row]) -> Json:
    runs = []
    for row in rows:
        found = {} if row.result is None else msgspec.to_builtins(row.result)
        found.pop("seconds", None)  # of a start of Python, mostly: nobody is to take it for a latency
        runs.append({"bundle": row.bundle, "on": row.on, "engine": row.engine, "why_not": row.why_not, **found})
    return {"runs": runs, "passed": all(row.result is not None and row.result.passed for row in rows)}


def _refuse_failures(rows: Sequence[_Row], document: Json) -> None:
    failed = [f"{r.bundle} on {r.on}: {r.result.reason}" for r in rows if r.result is not None and not r.result.passed]
    if failed:
        raise RefusedError(f"golden answers differ: {'; '.join(failed)}", code="proof-failed", details=document)
    missing = [f"{r.bundle} on {r.on}: {r.why_not.partition(': ')[2]}" for r in rows if r.result is None]
    if missing:
        raise RefusedError(f"not proven: {'; '.join(missing)}", code="proof-missing", details=document)


@contextmanager
def _told() -> Iterator[None]:
    """The converter's and the bundle's errors as this package's."""
    try:
        with converter_errors():
            yield
    except ProtocolError as error:
        raise FilesError(str(error), code=error.code) from error
