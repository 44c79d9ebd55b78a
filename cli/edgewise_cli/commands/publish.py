"""`edgewise publish`: a signed release, or a finished model file, to the server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise_cli.commands.profiles import complete
from edgewise_cli.commands.sign import sign_bundles, warn_of_unproven
from edgewise_cli.errors import RefusedError, UsageError
from edgewise_cli.importing import Finished, bundle_finished
from edgewise_cli.keys.folder import open_folder
from edgewise_cli.shell import Json, Shell, command
from edgewise_cli.signing import release as releases
from edgewise_cli.signing.metadata import signatures
from edgewise_cli.signing.release import Release
from edgewise_cli.trust.offline import OfflineView
from edgewise_cli.trust.publishing import delegator_of, publish
from edgewise_cli.trust.repository import FOLDER, Repository

MODEL_SUFFIXES = (".onnx", ".tflite")
_BYOM = "A finished model"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "publish")(publish_any)


def publish_any(
    shell: Shell,
    what: Annotated[
        Path, typer.Argument(metavar="RELEASE|MODEL", help="What `edgewise sign` wrote, or an .onnx or .tflite file.")
    ],
    keys: Annotated[Path, typer.Option(help="The folder of keys.", show_default=False)],
    sample: Annotated[
        Path | None,
        typer.Option(
            help="Inputs as .npz, .npy or .safetensors, by name; `y` are labels, `output.NAME` expected answers.",
            rich_help_panel=_BYOM,
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="The version to publish.", min=1, rich_help_panel=_BYOM, show_default=False)
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            "--profile", "-p", help="A target; repeat for several.", autocompletion=complete, rich_help_panel=_BYOM
        ),
    ] = None,
    channel: Annotated[
        str | None, typer.Option(help="Channel to sign for.", rich_help_panel=_BYOM, show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="[default: the file's name]", rich_help_panel=_BYOM, show_default=False)
    ] = None,
    task: Annotated[
        str, typer.Option(help="classification, regression, embedding or other.", rich_help_panel=_BYOM)
    ] = "other",
    labels: Annotated[
        Path | None,
        typer.Option(help="A text file with one class a line.", rich_help_panel=_BYOM, show_default=False),
    ] = None,
    origin: Annotated[str, typer.Option(help="Where the file comes from; signed with it.", rich_help_panel=_BYOM)] = "",
    key: Annotated[
        list[str] | None, typer.Option(help="Sign with these keys only, by name.", rich_help_panel=_BYOM)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for bundles and release. [default: MODEL-VERSION]", rich_help_panel=_BYOM, show_default=False
        ),
    ] = None,
) -> Json:
    """Upload a release's bundles, attestations and metadata, and verify what the server then serves.

    Given a finished .onnx or .tflite file and a sample of its inputs, make the release first: run
    the sample, bundle the file as it is for each --profile, and sign it with your release keys.
    Neither trainer nor torch is needed: pip install 'edgewise[publisher]'.
    """
    if what.suffix not in MODEL_SUFFIXES:
        if given := [n for n, v in (("--sample", sample), ("--version", version), ("--profile", profile)) if v]:
            raise UsageError(f"{', '.join(given)}: only for an .onnx or .tflite file; {what} is neither")
        return _publish(shell, releases.load(what), keys)
    missing = [
        name
        for name, value in (
            ("--sample", sample),
            ("--version", version),
            ("--profile", profile),
            ("--channel", channel),
        )
        if not value
    ]
    if sample is None or version is None or channel is None or not profile:
        raise UsageError(f"a finished model needs {', '.join(missing)} too")
    name = model or what.stem
    folder = out or Path(f"{name}-{version}")
    release_folder = folder / "release"
    if release_folder.exists():
        raise RefusedError(
            f"{release_folder} exists: publish it with `edgewise publish {release_folder} --keys {keys}`, or name "
            "another folder with --out",
            code="release-exists",
        )
    finished = Finished(what, sample, name, version, task, labels, origin)
    with shell.progress("bundling") as update:
        bundles, reports = bundle_finished(finished, profile, folder / "bundles", update)
    _table(shell, reports)
    if missed := [r for r in reports if not r["passed"]]:
        raise RefusedError(
            f"the budget is missed for {', '.join(str(r['profile']) for r in missed)}; nothing was signed",
            code="budget",
            details={"bundles": reports},
        )
    release = sign_bundles(shell, bundles, keys, channel, release_folder, tuple(key or ()))
    _check_threshold(release, keys)
    unproven = warn_of_unproven(shell, release)
    done = _publish(shell, release, keys)
    return {"bundles": reports, "release": str(release_folder), "unproven": unproven, **done}


def _publish(shell: Shell, release: Release, keys: Path) -> Json:
    folder = open_folder(keys, "offline")
    repository = Repository(shell.client, folder.path / FOLDER, folder.root())
    with shell.progress("publishing") as update:
        done = publish(shell.client, repository, release, lambda text: update(text, None))
    for path in done.files:
        shell.say(f"published {path}" if done.changed else f"was published already: {path}")
    for role, version in done.versions.items():
        shell.say(f"{role} is at version {version}, verified from your root")
    return {"versions": done.versions, "files": list(done.files), "changed": done.changed}


def _check_threshold(release: Release, keys: Path) -> None:
    """Raise `RefusedError` with the way on where another key holder must sign."""
    folder = open_folder(keys, "offline")
    view = OfflineView(folder.path / FOLDER, folder.root())
    for role, document in release.roles.items():
        state = signatures(delegator_of(view, role), role, document)
        if not state.enough:
            raise RefusedError(
                f"{role} has {state.have} of {state.threshold} signatures. Another key holder runs "
                f"`edgewise sign {release.path} --keys KEYS`, then `edgewise publish {release.path} --keys {keys}`",
                code="too-few-signatures",
                details={"release": str(release.path), "have": state.have, "threshold": state.threshold},
            )


def _table(shell: Shell, reports: list[Json]) -> None:
    rows = [
        [
            str(r["profile"]),
            f"{r['format']} {r['precision']}",
            f"{r['model_size_bytes'] / 1024:.1f}",
            str(r["samples"]),
            "-" if r["accuracy"] is None else f"{100 * r['accuracy']:.2f} %",
            f"{r['latency_ms']:.3f}{'' if r['latency_binding'] else ' (this host)'}",
            "passed" if r["passed"] else "; ".join(r["misses"]),
        ]
        for r in reports
    ]
    shell.table("Bundles", ["profile", "form", "KiB", "samples", "accuracy", "latency ms", "verdict"], rows)
    for note in dict.fromkeys(note for r in reports for note in r["notes"]):
        shell.say(f"note: {note}")
