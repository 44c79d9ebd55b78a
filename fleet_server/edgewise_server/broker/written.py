"""Generated files that an operator may edit: each carries the digest of what was generated, so that an edit shows.

A file that nobody touched is replaced by the newer one; beside a file that was edited the newer one is laid as
`NAME.new`, and the edit stands.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from pathlib import Path
from typing import Final

from edgewise_server.errors import SettingsError
from edgewise_server.files import write_atomic

_MARK: Final = "# Written by `edgewise-server init`; digest of what follows: "
_MAX_BYTES: Final = 1 << 20


class Outcome(Enum):
    """What became of a file."""

    WRITTEN = "written"
    UNCHANGED = "unchanged"
    KEPT = "kept, since it was edited; the newer one lies beside it as .new"


def marked(text: str) -> str:
    """The text under a line that tells its digest."""
    return f"{_MARK}{_digest(text)}\n{text}"


def was_edited(content: str) -> bool:
    """Whether content is something else than what `marked` made."""
    first, _, rest = content.partition("\n")
    return first != _MARK + _digest(rest)


def write_generated(path: Path, text: str) -> Outcome:
    """Write a generated file, unless it was edited.

    Raises:
        SettingsError: the file cannot be read or written.
    """
    wanted = marked(text)
    beside = path.with_name(f"{path.name}.new")
    try:
        if path.exists():
            with path.open(encoding="utf-8") as file:
                found = file.read(_MAX_BYTES)
            if found == wanted:
                return Outcome.UNCHANGED
            if was_edited(found):
                write_atomic(beside, wanted.encode())
                return Outcome.KEPT
        write_atomic(path, wanted.encode())
        beside.unlink(missing_ok=True)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be written: {error}") from error
    return Outcome.WRITTEN


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
