"""`edgewise keys rotate-online`: after a theft of the server's keys, the offline keys put new ones into force."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from cryptography.hazmat.primitives.asymmetric import ec
from tuf.api.metadata import Metadata, Targets

from edgewise_cli import files
from edgewise_cli.errors import RefusedError, TrustError
from edgewise_cli.keys import ceremony, fleet_ca
from edgewise_cli.keys.folder import KeyFolder, open_folder, read_private
from edgewise_cli.keys.rotation import next_root, rotate_director
from edgewise_cli.shell import Json, Shell, command
from edgewise_cli.signing.metadata import sign_role, signatures
from edgewise_cli.trust.offline import OfflineView
from edgewise_cli.trust.repository import FOLDER, Repository, parse

ROTATION: Final = "rotation"
"""In the offline folder: what `edgewise trust install` still has to bring to the server."""
_TARGETS: Final = "targets.json"
_INTERMEDIATE: Final = "intermediate.pem"
_CA_KEY: Final = "fleet-ca.pem"
_CA: Final = "fleet-ca.crt"

Folder = Annotated[Path, typer.Argument(metavar="KEYS", help="The folder of keys.", show_default=False)]


def add_to(app: typer.Typer) -> None:
    """Add the command to `edgewise keys`."""
    command(app, "rotate-online")(rotate_online)


def rotate_online(
    shell: Shell,
    folder: Folder,
    online: Annotated[Path, typer.Option(help="The online.json of `edgewise-server rotate-keys`.", show_default=False)],
) -> Json:
    """Sign root, targets and the fleet's intermediate for new online keys: those of the server were stolen.

    Needs no network: run `edgewise trust fetch` before, where the server can be reached, and
    `edgewise trust install` after. Devices follow by themselves.
    """
    offline = open_folder(folder, "offline")
    view = OfflineView(offline.path / FOLDER, offline.root())
    trusted, targets = view.root(), view.targets()
    server = ceremony.read_online(files.read_json(online))
    now = datetime.now(UTC).replace(microsecond=0)
    if server.snapshot.keyid in trusted.signed.roles["snapshot"].keyids:
        raise RefusedError(f"{online} names the keys that are in force: run `edgewise-server rotate-keys` first")
    ca, ca_key = _ca(offline)
    intermediate = fleet_ca.sign_intermediate(server.intermediate_csr_pem, ca, ca_key, now)
    new_root = next_root(trusted, offline.signers("root"), now=now, online=server)
    following = rotate_director(targets.signed, server, fleet_ca.pins(ca, intermediate), now)
    new_targets = sign_role(following, offline.signers("targets"))
    state = signatures(new_root.signed, "targets", new_targets)
    if not state.enough:
        raise RefusedError(f"targets has {state.have} of {state.threshold} signatures: all of them must be here")
    out = offline.path / ROTATION
    files.write(out / _INTERMEDIATE, fleet_ca.pem(intermediate).encode())
    files.write(out / _TARGETS, ceremony.encode(new_targets))
    # the root last: with it the rotation is there to be installed
    version = new_root.signed.version
    files.write(offline.path / FOLDER / "root_history" / f"{version}.root.json", ceremony.encode(new_root))
    shell.say(
        f"Root {version} and targets {following.version} are signed; `edgewise trust install {folder}` comes next."
    )
    return {"root_version": version, "targets_version": following.version, "rotation": str(out)}


def finish_rotation(shell: Shell, offline: KeyFolder, repository: Repository) -> bool:
    """Bring the server the targets metadata and the intermediate of a rotation whose root it has; repeatable.

    Raises:
        TrustError: the server keeps an older rotation's, or answers with others.
    """
    folder = offline.path / ROTATION
    if not (folder / _TARGETS).exists():
        return False
    signed: Metadata[Targets] = parse(files.read(folder / _TARGETS), "targets")
    trusted = repository.targets().signed
    if signed.signed.version > trusted.version + 1:
        raise TrustError(
            f"the rotation continues version {signed.signed.version - 1} of targets; the server is at {trusted.version}"
        )
    if signed.signed.version == trusted.version + 1:
        shell.client.put_bytes("/metadata/targets", files.read(folder / _TARGETS))
    elif trusted.version == signed.signed.version and trusted != signed.signed:
        raise TrustError(
            f"the server has other targets metadata of version {trusted.version}: run `edgewise trust fetch`, and "
            "rotate again"
        )
    body = {
        "fleet_ca_pem": files.read(offline.path / _CA).decode(),
        "intermediate_pem": files.read(folder / _INTERMEDIATE).decode(),
    }
    done: Any = shell.client.put("/trust/fleet-ca", body)
    for name in (_TARGETS, _INTERMEDIATE):
        (folder / name).unlink()
    shell.say("The new online keys and the new intermediate are in force; devices follow by themselves.")
    return bool(done.get("changed"))


def _ca(offline: KeyFolder) -> tuple[Any, ec.EllipticCurvePrivateKey]:
    key = read_private(offline.path / _CA_KEY)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TrustError(f"{offline.path / _CA_KEY} is not an elliptic-curve key")
    return fleet_ca.read_certificate(files.read(offline.path / _CA)), key
