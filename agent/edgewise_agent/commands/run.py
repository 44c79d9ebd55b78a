"""`edgewise-agent run`: serve, and follow the fleet, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgewise_agent import log
from edgewise_agent.commands.settings import add_state, config_of
from edgewise_agent.config import AgentConfig
from edgewise_agent.selfupdate.boot import RESTART


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    command = subparsers.add_parser("run", help="serve, and follow the fleet")
    command.add_argument(
        "--http-port", type=int, metavar="N", help="where to serve (default 8089); 0 takes a free port"
    )
    command.add_argument("--train-data", metavar="FILE", help="safetensors with x and y, to take part in federations")
    add_state(command)
    command.set_defaults(act=_act)


def _act(given: argparse.Namespace) -> int:
    config = config_of(given)
    log.set_up(config.log_level)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        again = runner.run(_serve(given.state, config))
    return RESTART if again else 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(state: Path, config: AgentConfig) -> bool:
    """Serve until told to stop; true when another agent is to be started instead."""
    from edgewise_agent.app import Agent

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    agent = Agent(state, config)

    def leave() -> None:
        loop.call_soon_threadsafe(stop.set)

    agent.selfupdate.on_leave = leave
    try:
        await agent.start()
        # One write: an unbuffered `print` writes the line's end apart, and a log line of another thread comes between.
        sys.stdout.write(f"serving at {agent.serving_url}\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await agent.stop()
    return agent.selfupdate.leaving
