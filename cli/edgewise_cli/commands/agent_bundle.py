"""`edgewise agent-bundle`: the agent's own code as a bundle, to be signed and rolled out like a model's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise_cli import files
from edgewise_cli.agents import ANY, build_agent
from edgewise_cli.commands.profiles import complete, load
from edgewise_cli.errors import RefusedError
from edgewise_cli.shell import Json, Shell, command


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "agent-bundle")(agent_bundle)


def agent_bundle(
    shell: Shell,
    wheel: Annotated[
        list[Path],
        typer.Argument(metavar="WHEEL...", help="Wheels of the agent, the protocol, and what the base may lack."),
    ],
    out: Annotated[Path, typer.Option(help="The bundle to write (.ewb).", show_default=False)],
    profile: Annotated[
        str, typer.Option("--profile", "-p", help="The boards that it is for.", autocompletion=complete)
    ] = ANY,
    number: Annotated[
        int | None,
        typer.Option(help="The bundle's number. [default: 1002003 for 1.2.3]", min=1, max=2**31 - 1),
    ] = None,
) -> Json:
    """Make a bundle of the agent itself from wheels.

    Sign it with `edgewise sign`, publish it, and roll it out as `edgewise rollout start edgewise-agent NUMBER`.
    Devices take it only from the offline keys, never from a worker's.
    """
    if out.exists():
        raise RefusedError(f"{out} exists: name a new file")
    manifest, data = build_agent(wheel, None if profile == ANY else load(profile), number)
    files.write(out, data)
    version = manifest.agent.version if manifest.agent else ""
    shell.say(
        f"{out}: agent {version} as {manifest.model} {manifest.version} for {manifest.profile}, {len(data)} bytes"
    )
    return {
        "bundle": str(out),
        "model": manifest.model,
        "version": manifest.version,
        "agent_version": version,
        "profile": manifest.profile,
        "bytes": len(data),
    }
