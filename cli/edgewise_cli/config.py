"""Where the server is and who asks: flags, then the environment, then a profile of the user's file.

    ~/.config/edgewise/config.toml
    [profiles.default]
    server = "http://127.0.0.1:8470"
    token = "ew_..."
    ca_file = "/etc/edgewise/fleet-ca.pem"    # where the fleet's own authority issued the server's certificate

`edgewise login` writes it (mode 0600).
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgewise_cli import files
from edgewise_cli.errors import UsageError

DEFAULT_PROFILE = "default"
_PROFILE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


@dataclass(frozen=True)
class Connection:
    """A server and the bearer token to show it. Either may be empty."""

    server: str
    token: str
    ca_file: str = ""
    """PEM of the authority that the server's certificate must lead to; empty: the system's authorities."""


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The user's configuration file."""
    if explicit := environ.get("EDGEWISE_CONFIG"):
        return Path(explicit)
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "edgewise" / "config.toml"


def load_profiles(path: Path) -> dict[str, Connection]:
    """The profiles of a configuration file; none where there is no file.

    Raises:
        UsageError: it is not what `edgewise login` writes.
    """
    if not path.exists():
        return {}
    try:
        document = tomllib.loads(files.read(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    profiles = document.get("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(p, dict) for p in profiles.values()):
        raise UsageError(f"{path}: [profiles.NAME] tables are expected")
    found = {}
    for name, values in profiles.items():
        if unknown := sorted(set(values) - {"server", "token", "ca_file"}):
            raise UsageError(f"{path}: profile {name!r} has an unknown key {unknown[0]!r}")
        found[name] = Connection(**{key: str(values.get(key, "")) for key in ("server", "token", "ca_file")})
    return found


def save_profile(path: Path, name: str, connection: Connection) -> None:
    """Add or replace one profile."""
    if not _PROFILE_NAME.match(name):
        raise UsageError(f"{name!r} is not a profile name: use letters, digits, '_' and '-'")
    profiles = {**load_profiles(path), name: connection}
    # A JSON string is a valid TOML basic string.
    text = "\n".join(
        f"[profiles.{key}]\nserver = {json.dumps(value.server)}\ntoken = {json.dumps(value.token)}\n"
        + (f"ca_file = {json.dumps(value.ca_file)}\n" if value.ca_file else "")
        for key, value in sorted(profiles.items())
    )
    files.write(path, text.encode(), secret=True)


def resolve(
    server: str | None,
    token: str | None,
    profile: str | None,
    environ: Mapping[str, str] = os.environ,
    *,
    ca_file: str | None = None,
    may_be_new: bool = False,
) -> Connection:
    """The connection that a command uses; what is named nowhere stays empty.

    Raises:
        UsageError: `profile` is named and does not exist, and may not be new.
    """
    wanted = profile or environ.get("EDGEWISE_PROFILE")
    path = config_path(environ)
    profiles = load_profiles(path)
    if wanted and wanted not in profiles and not may_be_new:
        raise UsageError(f"there is no profile {wanted!r} in {path}: run `edgewise login --login {wanted}`")
    base = profiles.get(wanted or DEFAULT_PROFILE, Connection("", ""))
    return Connection(
        server=(server or environ.get("EDGEWISE_SERVER") or base.server).rstrip("/"),
        token=token or environ.get("EDGEWISE_TOKEN") or base.token,
        ca_file=ca_file or environ.get("EDGEWISE_CA_FILE") or base.ca_file,
    )
