"""`edgewise-agent bench BUNDLE`: what a bundle costs on this very device; exit status 1 over its budget.

It needs no identity and no server, and touches nothing that serves.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec

MAX_SECONDS: Final = 3600.0


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    command = subparsers.add_parser("bench", help="measure what a bundle costs on this device")
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle (.ewb)")
    command.add_argument("--seconds", type=float, default=3.0, metavar="S", help="how long calls are timed (default 3)")
    command.add_argument("--threads", type=int, default=1, metavar="N", help="threads of one call (default 1)")
    command.add_argument("--board", default="", metavar="ID", help="profile id of this board, where it does not say it")
    command.add_argument("--json", action="store_true", help="one JSON document, for scripts")
    command.set_defaults(act=_act)


def _act(given: argparse.Namespace) -> int:
    from edgewise_agent.engines.registry import MAX_THREADS
    from edgewise_agent.errors import ConfigError
    from edgewise_agent.install.bench import bench, render

    if not 0 < given.seconds <= MAX_SECONDS or not 1 <= given.threads <= MAX_THREADS:
        raise ConfigError(f"at most {MAX_SECONDS:g} seconds and {MAX_THREADS} threads are possible, and at least one")
    with tempfile.TemporaryDirectory(prefix="edgewise-bench-") as folder:
        found = bench(given.bundle, Path(folder), given.seconds, given.threads, given.board)
    text = msgspec.json.encode(found).decode() if given.json else render(found)
    with contextlib.suppress(BrokenPipeError):
        print(text)
    return int(not found.passed)
