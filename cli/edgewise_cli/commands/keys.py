"""`edgewise keys`: the offline ceremony, and what follows it."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from edgewise_protocol.assignment import floors
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.names import check_name
from edgewise_protocol.targets import DIRECTOR, OFFERS, ROUNDS, auto_role, from_target_file
from securesystemslib.signer import Key, Signer, SSlibKey
from tuf.api.metadata import Metadata, Root

from edgewise_cli import files
from edgewise_cli.errors import FilesError, RefusedError, UsageError
from edgewise_cli.keys import ceremony, fleet_ca
from edgewise_cli.keys.delegations import channels, delegate, parse_channel
from edgewise_cli.keys.folder import ROOT, KeyEntry, KeyFolder, open_folder, signer_of, write_private
from edgewise_cli.keys.rotation import next_root
from edgewise_cli.shell import Json, Shell, command
from edgewise_cli.signing.metadata import set_floor, sign_role, signatures, successor
from edgewise_cli.trust.offline import OfflineView
from edgewise_cli.trust.repository import FOLDER, Repository

app = typer.Typer(help="Keys: the offline ceremony, channels, the rotation of root.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="KEYS", help="The folder of keys.", show_default=False)]


@command(app, "init")
def init(
    shell: Shell,
    folder: Folder,
    online: Annotated[Path, typer.Option(help="The server's online.json.", show_default=False)],
    channel: Annotated[list[str], typer.Option(help="NAME, or NAME:auto for one that the worker may sign for.")],
    root_keys: Annotated[int, typer.Option(help="Root keys to make.", min=1, max=15)] = 3,
    root_threshold: Annotated[int, typer.Option(help="Root keys that must sign together.", min=1)] = 2,
    targets_keys: Annotated[int, typer.Option(help="Release keys to make.", min=1, max=15)] = 2,
    targets_threshold: Annotated[int, typer.Option(help="Release keys that must sign together.", min=1)] = 1,
    root_signer: Annotated[
        list[str] | None, typer.Option(help="A root key elsewhere: a signer URI (file2:, hsm:, a KMS).")
    ] = None,
    root_public: Annotated[list[Path] | None, typer.Option(help="Its public key, PEM; one for each.")] = None,
    targets_signer: Annotated[list[str] | None, typer.Option(help="A release key elsewhere: a signer URI.")] = None,
    targets_public: Annotated[list[Path] | None, typer.Option(help="Its public key, PEM; one for each.")] = None,
) -> Json:
    """Make the offline keys and the worker's, and sign the fleet's first metadata.

    Keys given by signer URI count among --root-keys and --targets-keys. Set
    EDGEWISE_KEY_PASSPHRASE to protect the key files.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RefusedError(f"{folder} is not empty: keys are never overwritten")
    wanted = dict(parse_channel(text) for text in channel)
    server = ceremony.read_online(files.read_json(online))
    # Made beside its place and moved there when it is complete: a ceremony that failed leaves nothing behind.
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        offline, worker = KeyFolder(partial / "offline"), KeyFolder(partial / "worker")
        ceremony.check_threshold("root", root_threshold, root_keys)
        ceremony.check_threshold("targets", targets_threshold, targets_keys)
        root = _signers(offline, "root", root_keys, root_signer or [], root_public or [])
        targets = _signers(offline, "targets", targets_keys, targets_signer or [], targets_public or [])
        rounds, offers = (worker.signer(worker.add(role, role)) for role in (ROUNDS, OFFERS))
        auto = {
            name: worker.signer(worker.add(f"auto-{name}", auto_role(name))) for name, opted in wanted.items() if opted
        }
        ca_key = fleet_ca.new_key()
        made = ceremony.perform(
            root=root,
            root_threshold=root_threshold,
            targets=targets,
            targets_threshold=targets_threshold,
            rounds=rounds,
            offers=offers,
            auto=auto,
            channels=wanted,
            online=server,
            ca_key=ca_key,
            now=datetime.now(UTC).replace(microsecond=0),
        )
        write_private(offline.path / "fleet-ca.pem", ca_key)
        files.write(offline.path / "fleet-ca.crt", made.fleet_ca_pem.encode())
        for part in (offline, worker):
            _remember(part, made)
            part.save()
        files.write_json(partial / "ceremony.json", made.document())
        try:
            partial.replace(folder)
        except OSError as error:
            raise FilesError(f"{folder} cannot be made: {error.strerror or error}") from error
        offline.path, worker.path = folder / "offline", folder / "worker"
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shell.table(
        "The fleet's keys",
        ["role", "keys", "threshold", "where"],
        [
            ["root", str(root_keys), str(root_threshold), str(offline.path)],
            ["targets", str(targets_keys), str(targets_threshold), str(offline.path)],
            ["fleet CA", "1", "1", str(offline.path)],
            *[[e.role, "1", "1", str(worker.path)] for e in worker.entries],
            ["snapshot, timestamp, director", "1 each", "1", "the server"],
        ],
    )
    shell.say(f"Take {offline.path} offline; give {worker.path} to the worker, and to nobody else.")
    return {"keys": str(folder), "ceremony": str(folder / "ceremony.json"), "channels": wanted}


@command(app, "show")
def show(shell: Shell, folder: Folder) -> Json:
    """List the keys of a folder: role, key id, where the private part is."""
    parts = [p for p in (folder, folder / "offline", folder / "worker") if (p / "keys.json").exists()]
    if not parts:
        raise UsageError(f"{folder} holds no keys")
    rows: list[dict[str, Any]] = []
    for part in map(KeyFolder.load, parts):
        rows += [
            {
                "name": e.name,
                "role": e.role,
                "keyid": e.public.keyid,
                "uri": e.uri.split("?")[0],
                "available": part.available(e),
                "folder": str(part.path),
            }
            for e in part.entries
        ]
    shell.table(
        "Keys",
        ["role", "name", "key id", "private part"],
        [[r["role"], r["name"], r["keyid"][:16], r["uri"] if r["available"] else "elsewhere"] for r in rows],
    )
    return {"keys": rows}


@command(app, "rotate-root")
def rotate_root(
    shell: Shell,
    folder: Folder,
    replace: Annotated[str | None, typer.Option(help="Name of the root key to retire.", show_default=False)] = None,
) -> Json:
    """Sign the next root: with --replace a new key takes an old one's place, else only the expiry moves.

    `edgewise trust install` brings it to the server.
    """
    offline = open_folder(folder, "offline")
    view = OfflineView(offline.path / FOLDER, offline.root())
    trusted = view.root()
    change: tuple[str, Key] | None = None
    signers = offline.signers("root")
    if replace is not None:
        old = next((e for e in offline.of_role("root") if e.name == replace), None)
        if old is None:
            raise UsageError(f"{replace!r} is not a root key of {offline.path}")
        entry = offline.add(f"root-{trusted.signed.version + 1}-{len(offline.entries) + 1}", "root")
        change = (old.public.keyid, entry.public)
        signers.append(offline.signer(entry))
        offline.entries.remove(old)
    new = next_root(trusted, signers, now=datetime.now(UTC).replace(microsecond=0), replace=change)
    files.write(offline.path / FOLDER / "root_history" / f"{new.signed.version}.root.json", ceremony.encode(new))
    offline.save()
    shell.say(f"Root version {new.signed.version} is signed; `edgewise trust install {folder}` publishes it.")
    return {"version": new.signed.version, "keyids": new.signed.roles["root"].keyids}


@command(app, "add-channel")
def add_channel(
    shell: Shell,
    folder: Folder,
    channel: Annotated[str, typer.Argument(help="NAME, or NAME:auto.", show_default=False)],
    publish: Annotated[bool, typer.Option(help="Publish the new metadata; else leave them beside the keys.")] = True,
) -> Json:
    """Add a channel, or let an existing one opt in to what the worker signs (NAME:auto), or out of it (NAME)."""
    name, opted = parse_channel(channel)
    offline, worker = open_folder(folder, "offline"), open_folder(folder, "worker")
    repository = Repository(shell.client, offline.path / FOLDER, offline.root())
    trusted = repository.targets().signed
    wanted = channels(trusted)
    if wanted.get(name) == opted:
        raise RefusedError(f"the channel {name!r} is there already")
    wanted[name] = opted
    role = auto_role(name)
    if opted and not worker.of_role(role):
        worker.add(f"auto-{name}", role)
    if not worker.of_role(OFFERS):  # the keys were made before offers had a role of their own
        worker.add(OFFERS, OFFERS)
    now = datetime.now(UTC).replace(microsecond=0)
    new = successor(trusted, now)
    keys = {e.role: e for e in worker.entries}
    delegate(
        new,
        director=_director_key(trusted),
        rounds=keys[ROUNDS].public,
        offers=keys[OFFERS].public,
        auto={n: keys[auto_role(n)].public for n, on in wanted.items() if on},
        wanted=wanted,
    )
    metadata = sign_role(new, offline.signers("targets"))
    state = signatures(repository.root().signed, "targets", metadata)
    if not state.enough:
        raise RefusedError(f"targets has {state.have} of {state.threshold} signatures: all of them must be here")
    worker.save()
    out = offline.path / "pending" / f"{new.version}.targets.json"
    files.write(out, ceremony.encode(metadata))
    if publish:
        shell.client.put_bytes("/metadata/targets", ceremony.encode(metadata))
        if opted and role not in shell.client.get("/trust")["roles"]:  # one that opts in again has what it signed
            first = sign_role(ceremony.empty_role(now).signed, worker.signers(role))
            shell.client.put_bytes(f"/metadata/delegated/{quote(role)}", ceremony.encode(first))
        repository.refresh()
    shell.say(f"Channel {name}: {'the worker may sign for it' if opted else 'offline keys only sign for it'}")
    return {"channel": name, "auto": opted, "targets_version": new.version, "published": publish}


@command(app, "set-floor")
def set_floor_of(
    shell: Shell,
    folder: Folder,
    model: Annotated[str, typer.Argument(help="The model.", show_default=False)],
    version: Annotated[int, typer.Argument(help="Lowest version that a device may install.", min=1)],
    yes: Annotated[
        bool, typer.Option("--yes", help="Also a floor that no signed version reaches, or one below the floor so far.")
    ] = False,
) -> Json:
    """Sign, offline, the lowest version of a model that any device may install, whoever assigns it.

    After a bad release this keeps even a stolen server from bringing it back. A device that runs
    a version below the floor serves on until it is assigned another.
    """
    offline = open_folder(folder, "offline")
    repository = Repository(shell.client, offline.path / FOLDER, offline.root())
    trusted = repository.targets().signed
    try:
        before = floors(trusted).get(check_name(model, "model"), 0)
    except ProtocolError as error:
        raise UsageError(str(error)) from error
    if before == version:
        raise RefusedError(f"the floor of {model} is {version} already")
    if not yes:
        _check_floor_makes_sense(model, version, before, newest_version(repository, model))
    new = successor(trusted, datetime.now(UTC).replace(microsecond=0))
    set_floor(new, model, version)
    metadata = sign_role(new, offline.signers("targets"))
    state = signatures(repository.root().signed, "targets", metadata)
    if not state.enough:
        raise RefusedError(f"targets has {state.have} of {state.threshold} signatures: all of them must be here")
    shell.client.put_bytes("/metadata/targets", ceremony.encode(metadata))
    repository.refresh()
    shell.say(f"No device installs {model} below version {version} any more (the floor was {before}).")
    return {"model": model, "floor": version, "before": before, "targets_version": new.version}


def newest_version(repository: Repository, model: str) -> int:
    """The newest version of a model that offline keys or a worker have signed for any channel; 0 if there is none."""
    top = repository.targets().signed
    roles = top.delegations.roles if top.delegations is not None and top.delegations.roles is not None else {}
    signed = [top, *(repository.role(name).signed for name in roles if name not in (DIRECTOR, OFFERS, ROUNDS))]
    files = (from_target_file(target) for role in signed for target in role.targets.values())
    return max((file.custom.version for file in files if file.custom.model == model), default=0)


def _check_floor_makes_sense(model: str, version: int, before: int, newest: int) -> None:
    """Raise `RefusedError` for a floor that is more likely a slip than a wish."""
    if version > newest:
        signed = f"the newest that is signed is {newest}" if newest else "none is signed"
        raise RefusedError(
            f"no version of {model} reaches {version} ({signed}): no device could install any. "
            "Publish it first, or say --yes",
            code="floor-out-of-reach",
        )
    if version < before:
        raise RefusedError(
            f"the floor of {model} is {before}: {version} would let devices install what was ruled out. "
            "Say --yes if you mean it",
            code="floor-lowered",
        )


def _director_key(targets: Any) -> Key:
    role = targets.delegations.roles[DIRECTOR]
    key: Key = targets.delegations.keys[role.keyids[0]]
    return key


def _signers(folder: KeyFolder, role: str, number: int, uris: list[str], public: list[Path]) -> list[Signer]:
    if len(uris) != len(public):
        raise UsageError(f"{role}: every signer URI needs its public key, in the same order")
    if len(uris) > number:
        raise UsageError(f"{role}: {len(uris)} signers for {number} keys")
    signers: list[Signer] = []
    for index in range(number):
        if index < len(uris):
            key = _public_key(public[index])
            folder.entries.append(KeyEntry(f"{role}-{index + 1}", role, uris[index], key))
            signers.append(signer_of(uris[index], key))
        else:
            signers.append(folder.signer(folder.add(f"{role}-{index + 1}", role)))
    return signers


def _public_key(path: Path) -> Key:
    try:
        return SSlibKey.from_crypto(load_pem_public_key(files.read(path, 64 * 1024)))
    except ValueError as error:
        raise FilesError(f"{path} is not a PEM public key: {error}") from error


def _remember(part: KeyFolder, made: ceremony.Ceremony) -> None:
    """Put the trust anchor and the first metadata beside the keys, for signing offline."""
    root: Metadata[Root] = made.root
    files.write(part.path / ROOT, ceremony.encode(root))
    files.write(part.path / FOLDER / "targets.json", ceremony.encode(made.targets))
    for role, metadata in made.delegated.items():
        files.write(part.path / FOLDER / f"{quote(role, safe='')}.json", ceremony.encode(metadata))
