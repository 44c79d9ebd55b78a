"""`init --broker mosquitto`: lays out the broker's folder and the server's settings for it.

Safe to repeat: what stands in `server.toml` decides, so that a second run without options changes nothing; an option
that contradicts it is refused, and a file that an operator edited is kept. Both are said.
"""

from __future__ import annotations

import json
import os
import pwd
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgewise_server.broker.mosquitto import ACL_FILE, CONFIG_FILE, DATA_FOLDER, Listening, access_list, configuration
from edgewise_server.broker.written import write_generated
from edgewise_server.errors import SettingsError
from edgewise_server.files import write_atomic
from edgewise_server.pki.leaf import alternative_names
from edgewise_server.settings import SETTINGS_FILE, load_settings

LOOPBACK: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8883
"""secure-mqtt in IANA's registry."""


@dataclass(frozen=True)
class BrokerOptions:
    """What the operator says of the broker; None or empty: what stands, or the default."""

    hosts: tuple[str, ...] = ()
    """Names by which devices reach it, the first one being told to them; without any it listens on loopback only."""
    port: int | None = None
    websocket_port: int | None = None
    """Port of MQTT over WebSocket; 0: none."""
    address: str | None = None
    """Address to listen on."""


def set_up_mosquitto(state: Path, options: BrokerOptions) -> list[str]:
    """Write `broker/` and the settings; returns what to tell the operator.

    Raises:
        SettingsError: an option contradicts `server.toml`, a file cannot be written, or a value is out of bounds.
        InvalidError: a host is neither a DNS name nor an IP address.
    """
    path = state / SETTINGS_FILE
    text, found = _read(path)
    wanted = _wanted(options, found)
    alternative_names(wanted["broker_names"])
    check = {key: tuple(value) if isinstance(value, list) else value for key, value in wanted.items()}
    load_settings(state, **check)
    folder = state / "broker"
    try:
        for part in (folder, folder / DATA_FOLDER):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        user = pwd.getpwuid(os.geteuid()).pw_name
    except (OSError, KeyError) as error:
        raise SettingsError(f"{folder} cannot be made: {error}") from error
    listening = Listening(folder, wanted["broker_port"], wanted["broker_address"], user)
    told = []
    for name, content in ((CONFIG_FILE, configuration(listening)), (ACL_FILE, access_list())):
        told.append(f"{folder / name}: {write_generated(folder / name, content).value}")
    missing = {key: value for key, value in wanted.items() if key not in found}
    if missing:
        # A JSON value of these kinds is a TOML value too.
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in missing.items())
        begin = text if not text or text.endswith("\n") else text + "\n"
        write_atomic(path, (begin + lines).encode(), 0o600)
        told.append(f"{path}: added {', '.join(missing)}")
    return told


def _wanted(options: BrokerOptions, found: dict[str, Any]) -> dict[str, Any]:
    """The settings: what stands, else what the operator says, else the default.

    Raises:
        SettingsError: the operator says something else than what stands.
    """
    hosts = list(options.hosts) or found.get("broker_names") or [LOOPBACK]
    given = {
        "broker_port": options.port,
        "broker_public_host": options.hosts[0] if options.hosts else None,
        "broker_names": list(options.hosts) or None,
        "broker_address": options.address,
        "websocket_port": options.websocket_port,
    }
    defaults = {
        "embedded_broker": False,
        "broker_managed": True,
        "broker_tls": True,
        "broker_host": LOOPBACK,
        "broker_port": DEFAULT_PORT,
        "broker_public_host": hosts[0],
        "broker_names": hosts,
        "broker_address": LOOPBACK if hosts == [LOOPBACK] else "",
        "websocket_host": LOOPBACK if hosts == [LOOPBACK] else "0.0.0.0",  # noqa: S104 - devices come from everywhere
        "websocket_port": 0,
    }
    must = {key: defaults[key] for key in ("embedded_broker", "broker_managed", "broker_tls")}
    for key, value in (given | must).items():
        if value is not None and key in found and found[key] != value:
            raise SettingsError(
                f"{SETTINGS_FILE} says `{key} = {json.dumps(found[key])}`, and init would set {json.dumps(value)}: "
                "change it there, or remove the line, and run init again"
            )
    said = {key: value for key, value in given.items() if value is not None}
    return {key: found.get(key, said.get(key, default)) for key, default in defaults.items()}


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        found = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    if any(isinstance(value, dict) for value in found.values()):
        raise SettingsError(f"{path} has tables, and the settings of the server have none: mend it first")
    return text, found
