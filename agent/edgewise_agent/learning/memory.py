"""Which rounds this device has taken part in, on disk, so that none is trained twice."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final, Literal

import msgspec

from edgewise_agent.durable import write_atomic
from edgewise_agent.learning.round import Update

log = logging.getLogger(__name__)

_FILE: Final = "rounds.json"
_MAX_ROUNDS: Final = 512
_MAX_BYTES: Final = 4 * 1024 * 1024


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """One round. `training` means that training has begun: it is never begun again."""

    state: Literal["training", "ready", "done", "failed"]
    at: float
    update: Update | None = None


class RoundMemory:
    """The last 512 rounds; older ones are forgotten, as their offers have long expired.

    A file that cannot be read is begun anew: a round may then be trained a second time, which
    the server tells from the first by its stored update.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._rounds: dict[str, Remembered] = {}
        try:
            data = self._path.read_bytes()
            if len(data) > _MAX_BYTES:
                raise ValueError(f"{len(data)} bytes are too many")
            self._rounds = msgspec.json.decode(data, type=dict[str, Remembered])
        except FileNotFoundError:
            return
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            log.error("%s cannot be read and is begun anew: %s", self._path.name, error)

    def get(self, round_id: str) -> Remembered | None:
        """What is remembered of a round."""
        return self._rounds.get(round_id)

    def put(
        self, round_id: str, state: Literal["training", "ready", "done", "failed"], update: Update | None = None
    ) -> None:
        """Remember, durably. Raises `StorageError` where the disk refuses."""
        rounds = {name: known for name, known in self._rounds.items() if name != round_id}
        rounds[round_id] = Remembered(state=state, at=time.time(), update=update)
        for oldest in list(rounds)[:-_MAX_ROUNDS]:
            del rounds[oldest]
        write_atomic(self._path, msgspec.json.encode(rounds), mode=0o600)
        self._rounds = rounds
