"""Names that become part of a topic, a TUF path or a file name.

One rule for all of them, so that none can climb out of its folder or match a wildcard:
ASCII letters, digits, `.`, `_` and `-`, starting with a letter or a digit, 1 to 64 long.
"""

from __future__ import annotations

import re

from edgewise_protocol.bounds import MAX_NAME_CHARS
from edgewise_protocol.errors import TopicError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def check_name(value: str, what: str = "name") -> str:
    """Return `value` if it is a valid name.

    Raises:
        TopicError: it is empty, too long, or holds a character outside the rule.
    """
    if len(value) > MAX_NAME_CHARS or not _NAME.match(value):
        raise TopicError(
            f"{what} {value[:80]!r} is not valid: use 1 to {MAX_NAME_CHARS} ASCII letters, digits, "
            "'.', '_' or '-', starting with a letter or digit"
        )
    return value


def check_sha256(value: str) -> str:
    """Return `value` if it is a lower-case hexadecimal SHA-256 digest; else raise `TopicError`."""
    if not _SHA256.match(value):
        raise TopicError(f"{value[:80]!r} is not a lower-case hexadecimal SHA-256 digest")
    return value
