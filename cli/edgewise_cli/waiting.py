"""Waiting for something on the server, with a bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from edgewise_cli.errors import TimedOutError

T = TypeVar("T")


def wait_for(
    look: Callable[[], T],
    done: Callable[[T], bool],
    *,
    timeout_s: float,
    what: str,
    every_s: float = 0.5,
    seen: Callable[[T], None] = lambda _: None,
) -> T:
    """Look until `done`, at most `timeout_s` seconds.

    Args:
        seen: called with every look.

    Raises:
        TimedOutError: the time ran out; `what` is what was waited for.
    """
    end = time.monotonic() + timeout_s
    while True:
        found = look()
        seen(found)
        if done(found):
            return found
        if time.monotonic() >= end:
            raise TimedOutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(min(every_s, max(0.0, end - time.monotonic())))
