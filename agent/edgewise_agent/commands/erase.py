"""`edgewise-agent erase --state DIR [--yes]`."""

from __future__ import annotations

import argparse
from typing import Any

from edgewise_agent.commands.settings import add_state
from edgewise_agent.errors import ConfigError


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    command = subparsers.add_parser("erase", help="remove keys, models and data of a device that leaves the fleet")
    command.add_argument("--yes", action="store_true", help="do not ask")
    add_state(command)
    command.set_defaults(act=_act)


def _act(given: argparse.Namespace) -> int:
    from edgewise_agent.identity.erase import erase
    from edgewise_agent.identity.identity import read_card

    if not given.yes:
        _ask(f"erase {read_card(given.state).device_id} in {given.state} for good?")
    erase(given.state)
    print(f"{given.state} is erased; the server still lists the device until it is decommissioned there")
    return 0


def _ask(question: str) -> None:
    """Raise `ConfigError` unless the answer is yes."""
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError as error:
        raise ConfigError("nobody answers here: give --yes") from error
    if answer.strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was erased")
