"""Aggregates a round from files: one update in memory at a time, refused ones named and left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgewise_server.federation.strategies.table import strategy_named
from edgewise_server.federation.updates import UpdateError, read_layout, read_vector, write_weights


@dataclass(frozen=True, slots=True)
class ClientUpdate:
    """A stored update of one client."""

    device_id: str
    path: Path
    samples: int


@dataclass(frozen=True, slots=True)
class ClientResult:
    """What became of a client's update: its norm, or why it was refused."""

    device_id: str
    norm: float = 0.0
    clipped: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class RoundResult:
    weights: bytes
    """Safetensors bytes of the new global weights; empty where too few updates were good."""
    clients: tuple[ClientResult, ...]

    @property
    def accepted(self) -> tuple[ClientResult, ...]:
        return tuple(client for client in self.clients if not client.error)


def aggregate(
    strategy: str,
    start: Path,
    updates: Iterable[ClientUpdate],
    *,
    min_clients: int,
    clip_norm: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> RoundResult:
    """Aggregate the updates of a round.

    Args:
        strategy: a name of `edgewise_server.federation.strategies.table`.
        start: the round's global weights.
        min_clients: fewer good updates give no weights.
        progress: called with the device id after each update; may raise to stop.

    Raises:
        UpdateError: the global weights cannot be read.
    """
    layout = read_layout(start)
    base = np.empty(layout.size, dtype=np.float32)
    read_vector(start, layout, base)
    running = strategy_named(strategy)(base, layout.parameters, clip_norm)
    buffer = np.empty(layout.size, dtype=np.float32)
    clients = []
    for update in updates:
        try:
            read_vector(update.path, layout, buffer)
            added = running.add(buffer, update.samples)
            clients.append(ClientResult(update.device_id, added.norm, added.clipped))
        except UpdateError as error:
            clients.append(ClientResult(update.device_id, error=str(error)))
        if progress is not None:
            progress(update.device_id)
    good = sum(not client.error for client in clients)
    weights = write_weights(start, layout, running.result()) if good >= max(1, min_clients) else b""
    return RoundResult(weights, tuple(clients))
