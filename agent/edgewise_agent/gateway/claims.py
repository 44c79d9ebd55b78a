"""Which model has a board: one that holds one firmware serves one model, or it would be written at each request."""

from __future__ import annotations

import threading
from collections import Counter

from edgewise_agent.gateway.errors import BoardBusyError

_LOCK = threading.Lock()
_HELD: dict[str, Counter[str]] = {}
"""By board, how many versions of each model are open in this process."""


def claim(board: str, model: str) -> None:
    """Take a board for a model, as often as it has versions open; an empty board is nobody's.

    Raises:
        BoardBusyError: another model has it.
    """
    if not board:
        return
    with _LOCK:
        held = _HELD.setdefault(board, Counter())
        others = [name for name in held if name != model]
        if others:
            raise BoardBusyError(f"the board serves {others[0]!r}; it holds one model: withdraw that one first")
        held[model] += 1


def release(board: str, model: str) -> None:
    """Give back what `claim` took."""
    with _LOCK:
        if board in _HELD:
            _HELD[board][model] -= 1
            _HELD[board] += Counter()
