"""How the identity stands, on the disk: what `edgewise-agent status` says of it, also without a running agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from edgewise_agent.durable import write_atomic
from edgewise_agent.errors import IdentityError
from edgewise_agent.identity.identity import FOLDER

STANDING_FILE: Final = "standing.json"
_MAX_BYTES: Final = 64 * 1024


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """`identity/standing.json`. An empty code: all is well."""

    code: Annotated[str, Meta(max_length=64)] = ""
    """Of the server or of this agent: `device-revoked`, `cloned-identity`, ..."""
    text: Annotated[str, Meta(max_length=2_000)] = ""
    since: float = 0.0
    """Unix seconds."""


def read_standing(state: Path) -> Standing:
    """The standing; all is well where none was written. Raises `IdentityError` if it is damaged."""
    try:
        with (state / FOLDER / STANDING_FILE).open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_BYTES), type=Standing)
    except FileNotFoundError:
        return Standing()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise IdentityError(f"{STANDING_FILE} is unreadable: {error}") from error


def write_standing(state: Path, standing: Standing) -> None:
    """Replace the standing; raises `StorageError`."""
    write_atomic(state / FOLDER / STANDING_FILE, msgspec.json.encode(standing))
