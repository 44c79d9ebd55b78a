"""`edgewise-agent doctor [--json] [--deep] [--offline]`; exit status 1 if anything is wrong."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import msgspec

from edgewise_agent.commands.settings import add_state, config_of


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    command = subparsers.add_parser("doctor", help="what is wrong, and what to do about it")
    command.add_argument("--json", action="store_true", help="one JSON document, for scripts")
    command.add_argument("--deep", action="store_true", help="check every byte of the stored bundles")
    command.add_argument("--offline", action="store_true", help="try no connection")
    add_state(command)
    command.set_defaults(act=_act)


def _act(given: argparse.Namespace) -> int:
    from edgewise_agent.config import AgentConfig
    from edgewise_agent.doctor.check import Check, fail, failed, render
    from edgewise_agent.doctor.examination import examine
    from edgewise_agent.errors import ConfigError

    checks: list[Check] = []
    try:
        config = config_of(given)
    except ConfigError as error:
        checks.append(fail("settings", str(error), code=error.code))
        config = AgentConfig()
    checks += examine(given.state, config, deep=given.deep, offline=given.offline)
    text = msgspec.json.encode({"ok": not failed(checks), "checks": checks}).decode() if given.json else render(checks)
    with contextlib.suppress(BrokenPipeError):
        print(text)
    return int(failed(checks))
