"""`edgewise-server`: init, run, token.

Exit status: 0 done, 1 refused or failed (the message says why), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import uvicorn
from edgewise_protocol.errors import ProtocolError

from edgewise_server.app import PARTS, Part, create_app, parts_of, start_all, stop_all
from edgewise_server.context import ADMIN_TOKEN_FILE, KEYS_FOLDER, ONLINE_FILE, open_context
from edgewise_server.db import Database
from edgewise_server.errors import ServerError, SettingsError
from edgewise_server.schema import upgrade
from edgewise_server.services.tokens import TOKEN_ROLES
from edgewise_server.settings import ServerRole, Settings, load_settings
from edgewise_server.setup import initialize, make_token

_SHUTDOWN_S: Final = 10
_ENDING: Final = (signal.SIGINT, signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "init":
            return _init(load_settings(given.state))
        settings = load_settings(given.state)
        if not (settings.state / KEYS_FOLDER).is_dir():
            raise SettingsError(f"{settings.state} is not initialized: run `edgewise-server init --state ...`")
        if given.command == "token":
            days = given.days
            print(make_token(settings, given.name, given.role, days * 86_400 if days else None))
            return 0
        return _run(load_settings(given.state, http_host=given.host, http_port=given.port), given.role)
    except (ServerError, ProtocolError) as error:
        print(f"edgewise-server: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgewise-server", description="The fleet server of Edgewise.")
    commands = parser.add_subparsers(dest="command", required=True)
    state = argparse.ArgumentParser(add_help=False)
    state.add_argument("--state", type=Path, required=True, help="folder of keys, database and blobs")
    commands.add_parser("init", parents=[state], help="make a state folder; prints the first admin token once")
    run = commands.add_parser("run", parents=[state], help="run the server")
    run.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    run.add_argument("--port", type=int, help="port to listen on (default 8470)")
    run.add_argument("--role", choices=sorted(PARTS), default="all", help="what this process does (default all)")
    token = commands.add_parser("token", parents=[state], help="make a bearer token and print it")
    token.add_argument("--name", required=True)
    token.add_argument("--role", choices=TOKEN_ROLES, default="operator")
    token.add_argument("--days", type=float, help="days until it expires (default: never)")
    return parser


def _init(settings: Settings) -> int:
    secret = initialize(settings)
    print(f"state folder   {settings.state}")
    print(f"key ceremony   {settings.state / ONLINE_FILE}")
    if secret is None:
        print("tokens exist already; make another with `edgewise-server token`")
    else:
        print(f"admin token    {secret}   (shown once; also in {settings.state / ADMIN_TOKEN_FILE})")
    return 0


def _run(settings: Settings, role: ServerRole) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    database = Database(settings.url)
    try:
        upgrade(database)
    finally:
        database.close()
    context = open_context(settings)
    try:
        if "api" in PARTS[role]:
            app = create_app(context, role=role, parts=parts_of(context, role))
            config = uvicorn.Config(
                app,
                host=settings.http_host,
                port=settings.http_port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_SHUTDOWN_S,
            )
            server = uvicorn.Server(config)
            for number in _ENDING:
                # uvicorn raises the signal again once it has shut down; our own end follows then
                signal.signal(number, lambda *_: None)
            server.run()
            return 0 if server.started else 1
        _run_without_api(parts_of(context, role))
        return 0
    finally:
        context.close()


def _run_without_api(parts: Sequence[Part]) -> None:
    """Run parts until SIGINT or SIGTERM."""
    ended = threading.Event()
    for number in _ENDING:
        signal.signal(number, lambda *_: ended.set())
    running = start_all(parts)
    try:
        ended.wait()
    finally:
        stop_all(running)


if __name__ == "__main__":
    sys.exit(main())
