"""The command line: its groups, and the exit statuses in its help."""

from __future__ import annotations

from typing import Annotated

import typer

from edgewise_cli.commands import (
    agent_bundle,
    agent_package,
    bench,
    convert,
    device,
    federate,
    gate,
    group,
    keys,
    monitoring,
    passthrough,
    profiles,
    prove,
    publish,
    rollout,
    rotation,
    server,
    sign,
    train,
    trust,
    worker,
)
from edgewise_cli.errors import MEANING
from edgewise_cli.version import VERSION

_STATUSES = "\n\n".join(f"{int(status)}: {text}" for status, text in MEANING.items())

app = typer.Typer(
    name="edgewise",
    help=(
        "Train, convert, sign, publish, roll out, watch and federate models on a fleet of devices.\n\n"
        "Signatures are made here, with keys that no server has.\n\n"
        f"**Exit statuses**\n\n{_STATUSES}"
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(VERSION)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    return None


train.add_to(app)
convert.add_to(app)
sign.add_to(app)
publish.add_to(app)
bench.add_to(app)
gate.add_to(app)
prove.add_to(app)
agent_bundle.add_to(app)
agent_package.add_to(app)
monitoring.add_to(app)
server.add_to(app)
passthrough.add_to(app)
rotation.add_to(keys.app)
for _name, _group in {
    "profiles": profiles.app,
    "keys": keys.app,
    "trust": trust.app,
    "device": device.app,
    "group": group.app,
    "rollout": rollout.app,
    "federate": federate.app,
    "worker": worker.app,
    "token": server.tokens,
}.items():
    app.add_typer(_group, name=_name)
