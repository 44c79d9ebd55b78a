"""`edgewise sign`: from bundles to a release that devices may install once it is published."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from edgewise_protocol.targets import ROUNDS
from securesystemslib.signer import Signer

from edgewise_cli.errors import RefusedError, UsageError
from edgewise_cli.keys.delegations import channels
from edgewise_cli.keys.folder import open_folder
from edgewise_cli.shell import Json, Shell, command
from edgewise_cli.signing import release as releases
from edgewise_cli.signing.bundles import BundleFile, is_proven, read_bundle
from edgewise_cli.signing.metadata import signatures
from edgewise_cli.signing.release import Release
from edgewise_cli.trust.offline import OfflineView
from edgewise_cli.trust.publishing import delegator_of
from edgewise_cli.trust.repository import FOLDER, Repository

_PART = {"targets": "offline", ROUNDS: "worker"}
"""Which part of the keys signs for a role."""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "sign")(sign)


def sign(
    shell: Shell,
    what: Annotated[list[Path], typer.Argument(metavar="BUNDLE...|RELEASE", help="Bundles, or a release to co-sign.")],
    keys: Annotated[Path, typer.Option(help="The folder of keys.", show_default=False)],
    channel: Annotated[str | None, typer.Option(help="Channel to sign the bundles for.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="Release folder to write.")] = Path("release"),
    key: Annotated[list[str] | None, typer.Option(help="Sign with these keys only, by name.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no server; use the metadata beside the keys.")
    ] = False,
    require_proof: Annotated[
        bool,
        typer.Option("--require-proof", help="Refuse a bundle that names no run on its board's instruction set."),
    ] = False,
) -> Json:
    """Sign bundles into a release folder, or add your signature to a release.

    Inference bundles are signed by the offline release keys, training bundles by the
    worker's rounds key. The metadata that the new ones continue are verified from the root
    beside your keys, never taken on the server's word.
    """
    names = tuple(key or ())
    if len(what) == 1 and what[0].is_dir():
        release = releases.load(what[0])
        if require_proof:
            _check_proofs(release.unproven())
        added = releases.cosign(release, {role: _signers(keys, role, names) for role in release.roles})
    else:
        if channel is None:
            raise UsageError("--channel is needed: a signature is for one channel")
        release = sign_bundles(shell, what, keys, channel, out, names, offline=offline, require_proof=require_proof)
        added = sum(len(m.signatures) for m in release.roles.values())
    view = _view(shell, keys, True)
    states = {role: signatures(delegator_of(view, role), role, m) for role, m in release.roles.items()}
    shell.table(
        f"{release.path}: channel {release.channel}",
        ["bundle", "digest", "bytes"],
        [[f.path, f.sha256[:16], str(f.length)] for f in release.files.values()],
    )
    unproven = warn_of_unproven(shell, release)
    for role, state in states.items():
        ready = "ready to publish" if state.enough else "another key holder must sign this release"
        shell.say(f"{role}: {state.have} of {state.threshold} signatures; {ready}")
    return {
        "release": str(release.path),
        "channel": release.channel,
        "added": added,
        "files": [{"path": f.path, "sha256": f.sha256, "length": f.length} for f in release.files.values()],
        "unproven": unproven,
        "roles": {
            role: {"version": release.roles[role].signed.version, "have": s.have, "threshold": s.threshold}
            for role, s in states.items()
        },
    }


def sign_bundles(
    shell: Shell,
    what: Sequence[Path],
    keys: Path,
    channel: str,
    out: Path,
    names: tuple[str, ...] = (),
    *,
    offline: bool = False,
    require_proof: bool = False,
) -> Release:
    """Sign bundle files into a new release folder.

    Raises:
        RefusedError: the channel is none of the fleet's, the folder exists, or a bundle may not be signed;
            with `require_proof` also one whose manifest names no place where its golden answers were found again.
        TrustError, FilesError, UsageError.
    """
    bundles: dict[str, list[BundleFile]] = {}
    for path in what:
        bundle = read_bundle(path, channel)
        bundles.setdefault(ROUNDS if bundle.manifest.kind == "training" else "targets", []).append(bundle)
    if require_proof:
        _check_proofs([b.source.name for each in bundles.values() for b in each if not is_proven(b.manifest)])
    view = _view(shell, keys, offline)
    if channel not in (known := channels(view.targets().signed)):
        raise RefusedError(f"the channel {channel!r} is not one of this fleet's: {', '.join(sorted(known))}")
    trusted = {role: (view.targets() if role == "targets" else view.role(role)).signed for role in bundles}
    signers = {role: _signers(keys, role, names) for role in bundles}
    return releases.create(out, channel, bundles, trusted, signers, now=datetime.now(UTC).replace(microsecond=0))


def _check_proofs(unproven: Sequence[str]) -> None:
    if unproven:
        raise RefusedError(
            f"not run on the instruction set of its board: {', '.join(unproven)};"
            " `edgewise prove --prepare PROFILE` prepares the board, then convert again",
            code="proof-missing",
        )


def warn_of_unproven(shell: Shell, release: Release) -> list[str]:
    """Name the bundles that were not run on their board's instruction set."""
    found = release.unproven()
    for path in found:
        shell.say(f"WARNING: {path} was not run on the instruction set of its board: devices will be the first")
    return found


def _signers(keys: Path, role: str, names: tuple[str, ...]) -> list[Signer]:
    if role not in _PART:
        raise UsageError(f"{role} is not signed for by hand")
    folder = open_folder(keys, _PART[role])
    own = tuple(n for n in names if n in {e.name for e in folder.of_role(role)})
    if names and not own and role == "targets":
        raise UsageError(f"none of {', '.join(names)} is a key of {role}")
    return folder.signers(role, own)


def _view(shell: Shell, keys: Path, offline: bool) -> Repository | OfflineView:
    folder = open_folder(keys, "offline")
    if offline:
        return OfflineView(folder.path / FOLDER, folder.root())
    return Repository(shell.client, folder.path / FOLDER, folder.root())
