"""`edgewise-agent`: enrol, run, status.

Exit status: 0 done; 1 an error of the agent's; 2 wrong usage or settings; 3 not enrolled;
4 the enrolment was refused; 5 the endpoint cannot be opened; 6 the state is unusable.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.names import check_name

from edgewise_agent import log
from edgewise_agent.config import AgentConfig, load_config
from edgewise_agent.errors import (
    AgentError,
    ConfigError,
    EndpointError,
    EnrolError,
    IdentityError,
    NotEnrolledError,
    StateError,
    StorageError,
    code_of,
)

_EXITS: Final[tuple[tuple[type[Exception], int], ...]] = (
    (ConfigError, 2),
    (NotEnrolledError, 3),
    (EnrolError, 4),
    (IdentityError, 4),
    (EndpointError, 5),
    (StateError, 6),
    (StorageError, 6),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        status: int = given.act(given)
    except (AgentError, ProtocolError) as error:
        print(f"edgewise-agent: {code_of(error)}: {error}", file=sys.stderr)
        return next((code for kind, code in _EXITS if isinstance(error, kind)), 1)
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgewise-agent", description="The Edgewise device agent.")
    commands = parser.add_subparsers(dest="command", required=True)
    enrol = commands.add_parser("enrol", help="enrol this device with an enrolment file")
    enrol.add_argument("file", type=Path, metavar="FILE", help="what `edgewise device enrol-file` wrote")
    enrol.add_argument(
        "--simulated-board", default="", metavar="PROFILE", help="stand in for this board, e.g. raspberry-pi-5"
    )
    enrol.set_defaults(act=_enrol)
    run = commands.add_parser("run", help="serve, and follow the fleet")
    run.add_argument("--http-port", type=int, metavar="N", help="where to serve (default 8089); 0 takes a free port")
    run.add_argument("--train-data", metavar="FILE", help="safetensors with x and y, to take part in federations")
    run.set_defaults(act=_run)
    status = commands.add_parser("status", help="what serves, and why not")
    status.add_argument("--json", action="store_true", help="one JSON document, for scripts")
    status.set_defaults(act=_status)
    for command in (enrol, run, status):
        command.add_argument("--state", type=Path, required=True, metavar="DIR", help="this device's state folder")
    return parser


def _config(given: argparse.Namespace) -> AgentConfig:
    flags = {"http_port": getattr(given, "http_port", None), "train_data": getattr(given, "train_data", None)}
    return load_config(given.state, os.environ, {name: value for name, value in flags.items() if value is not None})


def _enrol(given: argparse.Namespace) -> int:
    from edgewise_agent.engines import installed
    from edgewise_agent.identity.enrol import enrol
    from edgewise_agent.identity.facts import detect

    if given.simulated_board:
        check_name(given.simulated_board, "profile")
    try:
        given.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageError(f"{given.state} cannot be made: {error.strerror}") from error
    config = _config(given)
    log.set_up(config.log_level)
    facts = detect(given.state, installed(), given.simulated_board, config.board)
    card = enrol(given.file, given.state, facts, given.simulated_board)
    print(f"enrolled as {card.device_id} in channel {card.channel}")
    return 0


def _run(given: argparse.Namespace) -> int:
    config = _config(given)
    log.set_up(config.log_level)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(given.state, config))
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(state: Path, config: AgentConfig) -> None:
    from edgewise_agent.app import Agent

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    agent = Agent(state, config)
    try:
        await agent.start()
        print(f"serving at {agent.serving_url}", flush=True)
        await stop.wait()
    finally:
        await agent.stop()


def _status(given: argparse.Namespace) -> int:
    from edgewise_agent.status import read_overview, render

    overview = read_overview(given.state)
    text = msgspec.json.encode(overview).decode() if given.json else render(overview)
    with contextlib.suppress(BrokenPipeError):
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
