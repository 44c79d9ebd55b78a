"""Which rounds this device has taken part in, on disk, so that none is trained twice, and none is gone back to."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec

from edgewise_agent.durable import write_atomic
from edgewise_agent.learning.round import Update

log = logging.getLogger(__name__)
T = TypeVar("T")

_FILE: Final = "rounds.json"
_FEDERATIONS: Final = "federations.json"
_MAX_FEDERATIONS: Final = 256
_MAX_ROUNDS: Final = 512
_MAX_BYTES: Final = 4 * 1024 * 1024


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """One round. `training` means that training has begun: it is never begun again."""

    state: Literal["training", "ready", "done", "failed"]
    at: float
    update: Update | None = None


class Newest(msgspec.Struct, frozen=True, kw_only=True):
    """The newest round of a federation that was taken up."""

    number: int
    keys: str
    """Digest of the keys of the `offers` role then: under others it counts no more."""


class RoundMemory:
    """The last 512 rounds; older ones are forgotten, as their offers have long expired.

    A file that cannot be read is begun anew: a round may then be trained a second time, which
    the server tells from the first by its stored update.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._federations_path = folder / _FILE, folder / _FEDERATIONS
        self._rounds = _read(self._path, dict[str, Remembered])
        self._federations = _read(self._federations_path, dict[str, Newest])

    def newest(self, federation: str) -> Newest | None:
        """The newest round that was taken up of a federation."""
        return self._federations.get(federation)

    def take_up(self, federation: str, number: int, keys: str) -> None:
        """Remember, durably, that a round is taken up. Raises `StorageError` where the disk refuses."""
        known = {name: newest for name, newest in self._federations.items() if name != federation}
        known[federation] = Newest(number=number, keys=keys)
        for oldest in list(known)[:-_MAX_FEDERATIONS]:
            del known[oldest]
        write_atomic(self._federations_path, msgspec.json.encode(known), mode=0o600)
        self._federations = known

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


def _read(path: Path, kind: type[T]) -> T:
    try:
        data = path.read_bytes()
        if len(data) > _MAX_BYTES:
            raise ValueError(f"{len(data)} bytes are too many")
        return msgspec.json.decode(data, type=kind)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        log.error("%s cannot be read and is begun anew: %s", path.name, error)
    return kind()
