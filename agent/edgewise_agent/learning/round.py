"""One federated round on the device, as a transition table. Pure: no I/O, no clock.

    offered → fetching → training → ready → uploading → done
                 any of the first five may end in failed

| state     | event         | next      | effects                                        |
|-----------|---------------|-----------|------------------------------------------------|
| offered   | Begun         | fetching  | Fetch                                          |
| fetching  | Fetched       | training  | Remember, Report(started), Train               |
| training  | Trained       | ready     | Remember, Report(trained), Announce, Watch     |
| ready     | Acked         | uploading | Send the chunks that credits allow, Watch      |
| uploading | Acked         | uploading | Send further chunks, Watch                     |
| ready, uploading | Acked, complete | done | Report(done), Remember, Forget files         |
| ready, uploading | Acked, error    | failed | Report, Remember, Forget files             |
| ready, uploading | Stalled, retries left | same | Announce; Send again from what is stored; Watch |
| ready, uploading | Stalled, none left    | failed | Report; the update stays, to be offered again |
| any but done, failed | Failed  | failed | Report, Remember, Forget files                 |

What is not in the table changes nothing: late acknowledgements, a second training's end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
from edgewise_protocol.bounds import CHUNK_BYTES
from edgewise_protocol.chunks import chunk_count

State = Literal["offered", "fetching", "training", "ready", "uploading", "done", "failed"]
MAX_STALLS: Final = 6
"""Silences in a row after which an upload is given up; acknowledged progress starts the count anew."""
_STALL_S: Final = 10.0
_MAX_STALL_S: Final = 120.0


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """What training gave: the update file's length and digest, and what it says of itself."""

    length: int
    sha256: str
    samples: int
    metrics: dict[str, float] = {}

    @property
    def chunks(self) -> int:
        """Chunks of `CHUNK_BYTES` that it is sent in."""
        return chunk_count(self.length)

    def span(self, chunk: int) -> tuple[int, int]:
        """Offset and length of one chunk."""
        return chunk * CHUNK_BYTES, min(CHUNK_BYTES, self.length - chunk * CHUNK_BYTES)


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """Where a round stands."""

    round_id: str
    state: State = "offered"
    update: Update | None = None
    stored: int = 0
    """Chunks below this are stored by the server."""
    sent: int = 0
    """Chunks below this were sent."""
    allowed: int = 0
    """Chunks below this may be sent."""
    stalls: int = 0


# ---------------------------------------------------------------- events


class Begun(msgspec.Struct, frozen=True):
    """The offer was accepted."""


class Fetched(msgspec.Struct, frozen=True):
    """The training bundle and the weights are here, verified."""


class Trained(msgspec.Struct, frozen=True):
    """The training process has ended well."""

    update: Update


class Acked(msgspec.Struct, frozen=True):
    """The server has spoken about this round's upload."""

    stored: int
    credits: int
    complete: bool = False
    error: str = ""


class Stalled(msgspec.Struct, frozen=True):
    """The watch has run out without progress."""


class Failed(msgspec.Struct, frozen=True):
    """Something went wrong, or the round has been superseded."""

    code: str
    text: str


Event = Begun | Fetched | Trained | Acked | Stalled | Failed

# ---------------------------------------------------------------- effects


class Fetch(msgspec.Struct, frozen=True):
    """Download the training bundle and the weights; ends in `Fetched` or `Failed`."""


class Train(msgspec.Struct, frozen=True):
    """Run the training process; ends in `Trained` or `Failed`."""


class Remember(msgspec.Struct, frozen=True):
    """Make the state durable, before anything that follows."""


class Announce(msgspec.Struct, frozen=True):
    """Publish `UpdateReady`."""


class Send(msgspec.Struct, frozen=True):
    """Publish chunks `first` to `end`, `end` left out."""

    first: int
    end: int


class Watch(msgspec.Struct, frozen=True):
    """Send `Stalled` after so many seconds, unless another watch takes this one's place."""

    seconds: float


class Report(msgspec.Struct, frozen=True):
    """Put an event in the outbox."""

    code: str
    text: str


class ForgetFiles(msgspec.Struct, frozen=True):
    """Delete the round's files."""


Effect = Fetch | Train | Remember | Announce | Send | Watch | Report | ForgetFiles
Step = tuple[Round, tuple[Effect, ...]]


def resumed(round_id: str, update: Update) -> Step:
    """A round whose update was trained before a restart, or given up on: announced again."""
    return Round(round_id=round_id, state="ready", update=update), (Remember(), Announce(), Watch(_STALL_S))


def advance(now: Round, event: Event) -> Step:
    """The round after an event, and what has to be done, in order."""
    row = _TABLE.get((now.state, type(event)))
    return row(now, event) if row else (now, ())


def _begin(now: Round, event: Begun) -> Step:
    return _moved(now, state="fetching"), (Fetch(),)


def _fetched(now: Round, event: Fetched) -> Step:
    return _moved(now, state="training"), (
        Remember(),
        Report("round-started", "training has begun"),
        Train(),
    )


def _trained(now: Round, event: Trained) -> Step:
    update = event.update
    return _moved(now, state="ready", update=update), (
        Remember(),
        Report("round-trained", f"trained on {update.samples} samples; the update has {update.length} bytes"),
        Announce(),
        Watch(_STALL_S),
    )


def _acked(now: Round, event: Acked) -> Step:
    if now.update is None:
        return now, ()
    if event.error:
        return _failed(now, Failed("round-refused", f"the server refused the update: {event.error}"))
    if event.complete:
        done = _moved(now, state="done", stored=now.update.chunks)
        return done, (Report("round-done", "the server has stored the update"), Remember(), ForgetFiles())
    chunks = now.update.chunks
    stored = max(now.stored, min(event.stored, chunks))
    allowed = max(now.allowed, min(event.stored + event.credits, chunks))
    first = max(now.sent, stored)
    after = _moved(
        now,
        state="uploading",
        stored=stored,
        allowed=allowed,
        sent=max(first, allowed),
        stalls=0 if stored > now.stored else now.stalls,
    )
    effects: tuple[Effect, ...] = (Send(first, allowed),) if allowed > first else ()
    return after, (*effects, Watch(_patience(after.stalls)))


def _stalled(now: Round, event: Stalled) -> Step:
    if now.stalls + 1 >= MAX_STALLS:
        gone = _moved(now, state="failed")
        return gone, (Report("round-stalled", f"the server was silent {MAX_STALLS} times; the upload is given up"),)
    after = _moved(now, stalls=now.stalls + 1, sent=max(now.stored, now.allowed))
    again: tuple[Effect, ...] = (Send(now.stored, now.allowed),) if now.allowed > now.stored else ()
    return after, (Announce(), *again, Watch(_patience(after.stalls)))


def _failed(now: Round, event: Failed) -> Step:
    return _moved(now, state="failed"), (Report(event.code, event.text), Remember(), ForgetFiles())


def _patience(stalls: int) -> float:
    return float(min(_MAX_STALL_S, _STALL_S * 2**stalls))


def _moved(now: Round, **changes: Any) -> Round:
    return msgspec.structs.replace(now, **changes)


_TABLE: Final[dict[tuple[State, type], Callable[[Round, Any], Step]]] = {
    ("offered", Begun): _begin,
    ("offered", Failed): _failed,
    ("fetching", Fetched): _fetched,
    ("fetching", Failed): _failed,
    ("training", Trained): _trained,
    ("training", Failed): _failed,
    ("ready", Acked): _acked,
    ("ready", Stalled): _stalled,
    ("ready", Failed): _failed,
    ("uploading", Acked): _acked,
    ("uploading", Stalled): _stalled,
    ("uploading", Failed): _failed,
}
