"""`edgewise agent-package`: the agent for one kind of board as a file that installs there without a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, cast

import typer

from edgewise_cli.agent_package import build
from edgewise_cli.agent_package.needs import needs
from edgewise_cli.commands.profiles import complete, load
from edgewise_cli.errors import MissingError, UsageError
from edgewise_cli.shell import Json, Shell, command

_FORMS = ("tar", "deb", "both")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "agent-package")(agent_package)


def agent_package(
    shell: Shell,
    profile: Annotated[
        str, typer.Option("--profile", "-p", help="The boards that it is for.", autocompletion=complete)
    ],
    out: Annotated[Path, typer.Option(help="The folder to write into.", show_default=False)],
    form: Annotated[
        str,
        typer.Option("--format", help="tar: an archive with an installer; deb: a Debian package; or both."),
    ] = "tar",
    wheels: Annotated[
        Path | None, typer.Option(help="A folder of wheels to take everything from; nothing is downloaded.")
    ] = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="An engine of the profile to bring. [default: all but optional ones]")
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="The boards' Python. [default: the profile's]", metavar="3.N")
    ] = None,
) -> Json:
    """Make an offline-installable package of the agent.

    On the board: unpack the archive and run `sudo sh install.sh`, or `sudo apt install ./FILE.deb`. The package holds
    the agent and everything that it needs in wheels for that board, a service, and checksums. Equal wheels give the
    same bytes.
    """
    if form not in _FORMS:
        raise UsageError(f"--format is {form[:40]!r}; take one of {', '.join(_FORMS)}")
    if python is not None and not re.fullmatch(r"3\.\d{1,2}", python):
        raise UsageError(f"--python is {python[:40]!r}; give it as 3.11")
    if wheels is not None and not wheels.is_dir():
        raise MissingError(f"{wheels} is not a folder of wheels")
    wanted = needs(load(profile), python, engine or ())
    with shell.progress("collecting wheels") as progress:
        made = build.build(wanted, out, cast(build.Format, form), wheels, progress)
    for package in made.packages:
        shell.say(f"{package.path}: {package.size / 1e6:.1f} MB, sha256 {package.sha256}")
    shell.say(
        f"agent {made.version} for {profile}, Python {wanted.python}, {', '.join(wanted.engines) or 'no engine'}; "
        f"{len(made.wheels)} wheels"
    )
    return {
        "profile": profile,
        "agent_version": made.version,
        "python": wanted.python,
        "engines": list(wanted.engines),
        "packages": [{"file": str(p.path), "kind": p.kind, "sha256": p.sha256, "bytes": p.size} for p in made.packages],
        "wheels": {w.distribution: w.version for w in made.wheels},
    }
