"""`edgewise-agent enrol FILE`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgewise_protocol.names import check_name

from edgewise_agent import log
from edgewise_agent.commands.settings import add_state, config_of
from edgewise_agent.errors import StorageError


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    command = subparsers.add_parser("enrol", help="enrol this device with an enrolment file")
    command.add_argument("file", type=Path, metavar="FILE", help="what `edgewise device enrol-file` wrote")
    command.add_argument(
        "--simulated-board", default="", metavar="PROFILE", help="stand in for this board, e.g. raspberry-pi-5"
    )
    add_state(command)
    command.set_defaults(act=_act)


def _act(given: argparse.Namespace) -> int:
    from edgewise_agent.engines import installed
    from edgewise_agent.identity.enrol import enrol
    from edgewise_agent.identity.facts import detect

    if given.simulated_board:
        check_name(given.simulated_board, "profile")
    try:
        given.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageError(f"{given.state} cannot be made: {error.strerror}") from error
    config = config_of(given)
    log.set_up(config.log_level)
    facts = detect(given.state, installed(config.gateway), given.simulated_board, config.board, gateway=config.gateway)
    card = enrol(given.file, given.state, facts, given.simulated_board)
    print(f"enrolled as {card.device_id} in channel {card.channel}")
    return 0
