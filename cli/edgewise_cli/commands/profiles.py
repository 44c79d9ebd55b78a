"""`edgewise profiles`: the catalogue of targets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from edgewise_profiles import catalogue, listing
from edgewise_profiles.errors import ProfileSchemaError, UnknownProfileError
from edgewise_profiles.schema import Profile

from edgewise_cli.errors import MissingError, UsageError
from edgewise_cli.shell import Json, Shell, command

FILE: Final = ".toml"
app = typer.Typer(help="Profiles: what a target is.", no_args_is_help=True)


def complete(incomplete: str) -> list[str]:
    """Shell completion of a profile's id."""
    return [name for name in catalogue.names() if name.startswith(incomplete)]


def load(name: str) -> Profile:
    """A profile by id, or one's own by its file.

    Raises:
        MissingError: there is none.
        UsageError: the file is no profile.
    """
    try:
        return catalogue.load_file(Path(name)) if name.endswith(FILE) else catalogue.load(name)
    except UnknownProfileError as error:
        raise MissingError(f"{error}; or give a {FILE} file of your own") from error
    except ProfileSchemaError as error:
        raise UsageError(str(error)) from error


@command(app, "list")
def list_profiles(shell: Shell) -> Json:
    """List the profiles."""
    profiles = [catalogue.load(name) for name in catalogue.names()]
    shell.table("Profiles", list(listing.HEADER), [list(listing.row(p)) for p in profiles])
    return {"profiles": [_document(p) for p in profiles]}


@command(app, "show")
def show(
    shell: Shell,
    profile: Annotated[
        str,
        typer.Argument(
            metavar="PROFILE", help="Its id, or a .toml file of your own.", show_default=False, autocompletion=complete
        ),
    ],
) -> Json:
    """Show one profile."""
    document = _document(load(profile))
    shell.document(document)
    return document


def _document(profile: Profile) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(profile)
    return {**document, "id": profile.id, "sha256": profile.sha256}
