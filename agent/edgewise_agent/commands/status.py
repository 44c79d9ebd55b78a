"""`edgewise-agent status [--json]`."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import msgspec

from edgewise_agent.commands.settings import add_state


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    command = subparsers.add_parser("status", help="what serves, and why not")
    command.add_argument("--json", action="store_true", help="one JSON document, for scripts")
    add_state(command)
    command.set_defaults(act=_act)


def _act(given: argparse.Namespace) -> int:
    from edgewise_agent.status import read_overview, render

    overview = read_overview(given.state)
    text = msgspec.json.encode(overview).decode() if given.json else render(overview)
    with contextlib.suppress(BrokenPipeError):
        print(text)
    return 0
