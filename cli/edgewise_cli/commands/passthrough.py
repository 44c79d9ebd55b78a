"""`edgewise server ...`: hands its arguments to `edgewise-server`, where that is installed.

The server is another distribution, which this one never imports; the program takes this one's place, so that signals,
the terminal and the exit status are its own.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import typer

from edgewise_cli.errors import NotInstalledError

PROGRAM: Final = "edgewise-server"


def find_program(name: str = PROGRAM) -> Path:
    """Where a program is: beside this Python, else on the PATH.

    Raises:
        NotInstalledError: nowhere.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if not found:
        raise NotInstalledError(
            f"this needs the program {name}, which is not installed here: pip install 'edgewise[server]', "
            "or run the command on the server's machine"
        )
    return Path(found)


def hand_over(arguments: Sequence[str]) -> None:
    """Become `edgewise-server` with these arguments; does not return.

    Raises:
        NotInstalledError: it is not installed, or cannot be run.
    """
    program = find_program()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(program, [str(program), *arguments])  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise NotInstalledError(f"{program} cannot be run: {error.strerror}; install edgewise-server again") from error


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        "server",
        help="Run the fleet server's own commands: init, run, token, certificate, backup, ... (`edgewise-server`).",
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def server(context: typer.Context) -> None:
        hand_over(context.args)
