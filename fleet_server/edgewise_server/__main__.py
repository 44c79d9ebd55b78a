"""`edgewise-server`: init, run, token, certificate, rotate-keys.

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

from edgewise_protocol.errors import ProtocolError

from edgewise_server import rotation
from edgewise_server.app import PARTS, Part, create_app, parts_of, start_all, stop_all
from edgewise_server.backup.commands import backup, restore
from edgewise_server.broker.certificate import make_certificate
from edgewise_server.broker.embedded import EmbeddedBroker
from edgewise_server.broker.setup import DEFAULT_PORT, BrokerOptions, set_up_mosquitto
from edgewise_server.context import ADMIN_TOKEN_FILE, KEYS_FOLDER, ONLINE_FILE, open_context
from edgewise_server.db import Database
from edgewise_server.errors import ServerError, SettingsError
from edgewise_server.schema import upgrade
from edgewise_server.services.tokens import TOKEN_ROLES
from edgewise_server.serving import ENDING, serve
from edgewise_server.settings import ServerRole, Settings, load_settings
from edgewise_server.setup import initialize, make_token


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "restore":
            return restore(given.state, given.file, given.digest)
        if given.command == "init":
            return _init(given)
        settings = load_settings(given.state)
        if not (settings.state / KEYS_FOLDER).is_dir():
            raise SettingsError(f"{settings.state} is not initialized: run `edgewise-server init --state ...`")
        if given.command == "backup":
            return backup(settings, given.file, with_keys=not given.without_keys)
        if given.command == "rotate-keys":
            return _rotate(settings)
        if given.command == "token":
            life_s = given.days * 86_400 if given.days else None
            print(make_token(settings, given.name, given.role, life_s, revoke_others=given.revoke_others))
            return 0
        if given.command == "certificate":
            for line in make_certificate(settings, given.host, given.out, given.days):
                print(line)
            return 0
        return _run(load_settings(given.state, http_host=given.host, http_port=given.port), given.role)
    except (ServerError, ProtocolError) as error:
        print(f"edgewise-server: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("edgewise-server:", "interrupted; nothing was left half done", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgewise-server", description="The fleet server of Edgewise.")
    commands = parser.add_subparsers(dest="command", required=True)
    state = argparse.ArgumentParser(add_help=False)
    state.add_argument("--state", type=Path, required=True, help="folder of keys, database and blobs")
    init = commands.add_parser("init", parents=[state], help="make a state folder; prints the first admin token once")
    init.add_argument("--broker", choices=("embedded", "mosquitto"), help="`mosquitto`: write STATE/broker")
    init.add_argument("--broker-host", action="append", default=[], metavar="NAME", help="by which devices reach it")
    init.add_argument("--broker-port", type=int, metavar="N", help=f"(default {DEFAULT_PORT})")
    init.add_argument("--broker-websocket-port", type=int, metavar="N", help="MQTT over WebSocket, e.g. 443")
    init.add_argument("--broker-address", metavar="ADDRESS", help="to listen on (default: all, or loopback)")
    run = commands.add_parser("run", parents=[state], help="run the server")
    run.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    run.add_argument("--port", type=int, help="port to listen on (default 8470)")
    run.add_argument("--role", choices=sorted(PARTS), default="all", help="what this process does (default all)")
    token = commands.add_parser("token", parents=[state], help="make a bearer token and print it")
    token.add_argument("--name", required=True)
    token.add_argument("--role", choices=TOKEN_ROLES, default="operator")
    token.add_argument("--days", type=float, help="days until it expires (default: never)")
    token.add_argument(
        "--revoke-others", action="store_true", help="after a theft: end every other token and open enrolment"
    )
    backup = commands.add_parser("backup", parents=[state], help="write database, keys and blobs to a file; may run on")
    backup.add_argument("file", type=Path, metavar="FILE", help="the archive to make; it must not exist")
    backup.add_argument("--without-keys", action="store_true", help="leave out private keys and the admin token")
    restore = commands.add_parser("restore", parents=[state], help="restore a backup into an empty state folder")
    restore.add_argument("file", type=Path, metavar="FILE", help="the archive")
    restore.add_argument("--digest", default="", help="what `backup` printed: refuse every other archive")
    commands.add_parser(
        "rotate-keys", parents=[state], help="after a theft: make new online keys; the offline keys put them into force"
    )
    certificate = commands.add_parser(
        "certificate", parents=[state], help="issue a server's certificate from the fleet's CA: HTTPS, another broker"
    )
    certificate.add_argument("--host", action="append", required=True, help="DNS name or IP address; may be repeated")
    certificate.add_argument("--out", type=Path, required=True, help="folder for certificate.pem, key.pem and ca.pem")
    certificate.add_argument("--days", type=float, default=90, help="its life (default 90)")
    return parser


def _rotate(settings: Settings) -> int:
    path = rotation.begin(settings)
    print(f"new keys are beside the old ones; key ceremony: {path}")
    print("next: `edgewise keys rotate-online KEYS --online online.json`, then `edgewise trust install KEYS`")
    return 0


def _init(given: argparse.Namespace) -> int:
    told: list[str] = []
    if given.broker == "mosquitto":
        options = BrokerOptions(
            tuple(given.broker_host), given.broker_port, given.broker_websocket_port, given.broker_address
        )
        told = set_up_mosquitto(given.state.resolve(), options)
    elif given.broker_host or any((given.broker_port, given.broker_websocket_port, given.broker_address)):
        raise SettingsError("the options --broker-... are for --broker mosquitto: name it too")
    settings = load_settings(given.state)
    secret = initialize(settings)
    for line in told:
        print(f"broker         {line}")
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
        parts = parts_of(context, role)
        for part in parts:
            if isinstance(part, EmbeddedBroker):
                part.check()
        if "api" in PARTS[role]:
            return 0 if serve(create_app(context, role=role, parts=parts), settings) else 1
        _run_without_api(parts)
        return 0
    finally:
        context.close()


def _run_without_api(parts: Sequence[Part]) -> None:
    """Run parts until SIGINT or SIGTERM."""
    ended = threading.Event()
    for number in ENDING:
        signal.signal(number, lambda *_: ended.set())
    running = start_all(parts)
    try:
        ended.wait()
    finally:
        stop_all(running)


if __name__ == "__main__":
    sys.exit(main())
