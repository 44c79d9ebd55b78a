"""`edgewise trust`: what the server is given by the offline keys, and what it serves of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from edgewise_protocol.targets import BESIDE

from edgewise_cli import files
from edgewise_cli.commands.rotation import finish_rotation
from edgewise_cli.errors import MissingError
from edgewise_cli.keys.folder import KeyFolder, open_folder
from edgewise_cli.shell import Json, Shell, command
from edgewise_cli.trust.repository import FOLDER, Repository

app = typer.Typer(help="Trust: install the ceremony on a server, verify what it serves.", no_args_is_help=True)

Keys = Annotated[Path, typer.Argument(metavar="KEYS", help="The folder of keys.", show_default=False)]


@command(app, "install")
def install(shell: Shell, keys: Keys) -> Json:
    """Give the server what the ceremony signed, newer roots, and the rest of a rotation; then verify what it serves.

    Needs an admin token. Installing twice changes nothing.
    """
    folder = open_folder(keys, "offline")
    ceremony = keys / "ceremony.json" if (keys / "ceremony.json").exists() else keys.parent / "ceremony.json"
    if not shell.client.get("/status")["trust"]["installed"]:
        shell.client.put("/trust", files.read_json(ceremony))
    # before anything is verified: a root that replaces stolen online keys makes worthless what they signed
    for path in _newer_roots(folder, _root_version(shell)):
        shell.client.put_bytes("/metadata/root", files.read(path))
    repository = Repository(shell.client, folder.path / FOLDER, folder.root())
    repository.refresh()
    finish_rotation(shell, folder, repository)
    return _verified(shell, folder)


@command(app, "fetch")
def fetch(shell: Shell, keys: Keys) -> Json:
    """Verify the server's metadata from your root, and keep them beside the keys for signing offline."""
    return _verified(shell, open_folder(keys, "offline"))


def _verified(shell: Shell, folder: KeyFolder) -> Json:
    repository = Repository(shell.client, folder.path / FOLDER, folder.root())
    repository.refresh()
    root, targets = repository.root().signed, repository.targets().signed
    found = {"root": (root.version, root.expires), "targets": (targets.version, targets.expires)}
    for name in (targets.delegations.roles or {}) if targets.delegations else ():
        if name not in BESIDE:
            role = repository.role(name).signed
            found[name] = (role.version, role.expires)
    shell.table(
        f"{shell.client.server}: verified from {folder.path / 'root.json'}",
        ["role", "version", "expires"],
        [[name, str(version), f"{expires:%Y-%m-%d}"] for name, (version, expires) in found.items()],
    )
    return {"roles": {n: {"version": v, "expires": e.isoformat()} for n, (v, e) in found.items()}}


def _root_version(shell: Shell) -> int:
    found = shell.client.get("/trust")
    try:
        return int(found["roles"]["root"]["version"])
    except (KeyError, TypeError) as error:
        raise MissingError("the server says that no trust is installed") from error


def _newer_roots(folder: KeyFolder, served: int) -> list[Path]:
    """Roots that were signed here and are newer than the one that the server has, in order."""
    history = folder.path / FOLDER / "root_history"
    newer: list[Path] = []
    while (path := history / f"{served + len(newer) + 1}.root.json").exists():
        newer.append(path)
    return newer
