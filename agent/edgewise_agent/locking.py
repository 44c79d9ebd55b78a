"""One agent on a state folder."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from edgewise_agent.errors import StateError


def lock_state(state: Path) -> IO[bytes]:
    """Hold the state folder for this process; raises `StateError` if another agent holds it."""
    try:
        file = (state / "lock").open("ab")
    except OSError as error:
        raise StateError(f"the state folder {state} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StateError(
            f"another agent already runs on the state folder {state}: stop it, or give another --state"
        ) from error
    return file
