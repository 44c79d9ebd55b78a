"""Small files that must not be lost: each is kept twice, and each copy knows whether it is whole.

A file is a text that begins with `{"digest": "<64 hex digits>"`, the SHA-256 of the file's own
bytes with zeros in those places. So a flipped bit in a number is found, which a parser would
take for another number, and fields that a newer agent added do not matter.

The second copy, `<name>.copy`, is written after the first and before anybody acts on it. It
therefore holds either the same or what was acted on last. A damaged copy is set aside as
`<name>.damaged-<time>`, of which the newest few stay for a look, and the other one is used.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from edgewise_agent.durable import sync_dir, write_atomic
from edgewise_agent.errors import storage_error

log = logging.getLogger(__name__)

T = TypeVar("T")
_SEAL: Final = re.compile(rb'\A\{\s*"digest":\s*"([0-9a-f]{64})"')
_BLANK: Final = b"0" * 64
_PREFIX: Final = b'{"digest": "' + _BLANK + b'"'
KEPT_DAMAGED: Final = 3


def seal(document: bytes) -> bytes:
    """A JSON object with its digest as the first field; raises `ValueError` for anything else."""
    if not document.startswith(b"{"):
        raise ValueError("only a JSON object can be sealed")
    rest = document[1:].lstrip()
    unsealed = _PREFIX + (b"" if rest.startswith(b"}") else b", ") + rest
    digest = hashlib.sha256(unsealed).hexdigest().encode()
    return unsealed.replace(_BLANK, digest, 1)


def whole(data: bytes) -> bool | None:
    """Whether a sealed file is what was written; None where it has no seal, as those of older agents."""
    found = _SEAL.match(data)
    if found is None:
        return None
    blank = data[: found.start(1)] + _BLANK + data[found.end(1) :]
    return hashlib.sha256(blank).hexdigest().encode() == found.group(1)


class TwinFile:
    """Args:
    path: the first copy; the second stands beside it.
    max_bytes: a longer file is damaged.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.copy = path.with_name(f"{path.name}.copy")
        self._max_bytes = max_bytes

    def write(self, document: bytes) -> None:
        """Replace both copies; raises `StorageError`, and then each copy is the old one or the new one."""
        data = seal(document)
        write_atomic(self.path, data)
        write_atomic(self.copy, data)

    def read(self, parse: Callable[[bytes], T]) -> tuple[T | None, str]:
        """What the file holds, and what was wrong with it, in words.

        Reads only, so that `status` and `doctor` may ask beside a running agent.

        Args:
            parse: makes the value; raises `ValueError` for what is not one.

        Returns:
            (None, "") if there is no file; (None, why) if no copy is whole;
            (value, why) if one copy was damaged, or missing where the other shows that it was there.
        """
        problems: list[str] = []
        absent = 0
        for path in (self.path, self.copy):
            try:
                value = self._parse(path, parse)
            except FileNotFoundError:
                absent += 1
                if path == self.path and self.copy.exists():
                    problems.append(f"{path.name} is missing")
            except (OSError, ValueError) as error:
                problems.append(f"{path.name} is damaged ({error})"[:300])
            else:
                return value, "; ".join(problems)
        return None, "" if absent == 2 else "; ".join(problems)

    def _parse(self, path: Path, parse: Callable[[bytes], T]) -> T:
        with path.open("rb") as file:
            data = file.read(self._max_bytes + 1)
        if len(data) > self._max_bytes:
            raise ValueError(f"it is longer than {self._max_bytes} bytes")
        if whole(data) is False:
            raise ValueError("its digest is not that of its content")
        return parse(data)

    def set_aside(self, parse: Callable[[bytes], T]) -> None:
        """Rename the copies that are damaged; raises `StorageError`."""
        for path in (self.path, self.copy):
            try:
                self._parse(path, parse)
            except FileNotFoundError:
                continue
            except (OSError, ValueError):
                set_aside(path)


def set_aside(path: Path) -> Path:
    """Rename a damaged file to `<name>.damaged-<time>`, and forget the oldest of such; raises `StorageError`."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    try:
        path.replace(aside)
        for old in sorted(path.parent.glob(f"{path.name}.damaged-*"))[:-KEPT_DAMAGED]:
            old.unlink(missing_ok=True)
        sync_dir(path.parent)
    except OSError as error:
        raise storage_error(f"the damaged {path.name} cannot be set aside", error) from error
    log.error("a damaged file is set aside", extra={"file": path.name, "aside": aside.name})
    return aside
