"""Danger: the server tells a device to delete what was never stored.

The agent's own window and outbox, and the server's own rule, against a wire that loses, repeats and reorders, a broker
that forgets, processes that restart at any step, and an outbox that is too small. Whatever the order: what a device
deleted is stored, or its own bound gave it up; and once the faults end, everything that is held arrives.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from edgewise_agent.observe.outbox import Outbox
from edgewise_agent.reporting.window import Window
from edgewise_protocol.messages import Event, decode
from edgewise_server.services.streams import MAX_BEYOND_GAP, Position, arrive
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

LIMIT = 5


def make(stream: str, seq: int, at: float) -> Event:
    return Event(stream=stream, seq=seq, at=at, kind="agent", text="x" * 50)


SENDING = st.tuples(st.just("device_sends"), st.integers(1, LIMIT), st.sets(st.integers(0, LIMIT - 1), max_size=3))
ENDS = st.sampled_from(["well", "well", "well", "killed", "repeated", "unheard"])
STEPS = st.one_of(
    st.tuples(st.just("device_puts"), st.integers(1, 4)),
    SENDING,
    SENDING,
    st.tuples(st.just("server_takes"), st.integers(1, 12), ENDS),
    st.tuples(st.just("server_takes"), st.integers(1, 12), ENDS),
    st.tuples(st.just("device_hears"), st.integers(0, 3)),
    st.tuples(st.just("device_reconnects_or_waited_long_enough")),
    st.tuples(st.just("device_restarts")),
    st.tuples(st.just("wire_reorders"), st.integers(0, 5)),
    st.tuples(st.just("broker_forgets")),
)


class Delivery(RuleBasedStateMachine):
    """One device, one stream. The wire up is a list of (sequence, after), the wire down one of `through`."""

    @initialize(size=st.sampled_from([400, 1_500, 1_000_000]))
    def begin(self, size: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.path, self.size = Path(self._folder.name) / "outbox.sqlite", size
        self.outbox = Outbox(self.path, size)
        self.window = Window(LIMIT, 10.0)
        self.put = 0
        self.given_up: set[int] = set()
        self.up: list[tuple[int, int | None]] = []
        self.down: list[int] = []
        self.position = Position()
        self.stored: set[int] = set()

    def held(self) -> set[int]:
        return {item.seq for item in self.outbox.pending(0, 1_000)}

    # -- the device --------------------------------------------------------------------------

    def device_puts(self, number: int) -> None:
        for _ in range(number):
            before = self.held()
            self.outbox.put("event", make)
            self.put += 1
            self.given_up |= (before | {self.put}) - self.held()
        assert len(self.given_up) == self.outbox.dropped, "given up in silence"

    def device_sends(self, number: int, lost: set[int]) -> None:
        """The broker drops some in silence: of those nobody hears."""
        for n, item in enumerate(self.outbox.pending(self.window.sent, min(number, self.window.room()))):
            self.window = self.window.published(item.seq, 0.0)
            if n not in lost:
                self.up.append((item.seq, decode(Event, item.payload).after))

    def device_reconnects_or_waited_long_enough(self) -> None:
        self.window = self.window.connected()

    def device_restarts(self) -> None:
        self.outbox.close()
        self.outbox, self.window = Outbox(self.path, self.size), Window(LIMIT, 10.0)

    def device_hears(self, late: int) -> None:
        """Acknowledgements too may be late, repeated or out of order."""
        if self.down:
            through = self.down[-1 - late % len(self.down)]
            self.window = self.window.stored(through, 0.0)
            self.outbox.acknowledge(self.outbox.stream, self.window.acknowledged)

    # -- the wire ----------------------------------------------------------------------------

    def wire_reorders(self, by: int) -> None:
        self.up = self.up[by:] + self.up[:by][::-1]

    def broker_forgets(self) -> None:
        self.up, self.down = [], []

    # -- the server --------------------------------------------------------------------------

    def server_takes(self, number: int, end: str) -> None:
        """A batch; the server is killed before the commit, or after it and before what it says to broker and device."""
        batch = self.up[:number]
        if end in ("well", "unheard"):
            self.up = self.up[number:]
        if not batch or end == "killed":
            return
        beyond = {seq for seq in self.stored if seq > self.position.through}
        found = arrive(self.position, beyond, dict(batch))
        assert not self.stored & set(found.fresh), "stored twice"
        self.stored |= set(found.fresh)
        self.position = found.position
        if end == "well":
            self.down.append(self.position.through)

    # One rule, not many: Hypothesis leaves rules out of most runs, and each of these is needed for a loss.
    @rule(step=STEPS)
    def one(self, step: tuple[Any, ...]) -> None:
        name, *arguments = step
        getattr(self, name)(*arguments)

    # -- what holds ---------------------------------------------------------------------------

    @invariant()
    def what_was_deleted_is_stored_or_was_given_up(self) -> None:
        if hasattr(self, "outbox"):
            gone = set(range(1, self.put + 1)) - self.held() - self.stored
            assert gone <= self.given_up, f"lost {gone - self.given_up}"

    @invariant()
    def nothing_that_is_held_lies_below_what_is_acknowledged_unless_stored(self) -> None:
        if hasattr(self, "outbox"):
            below = {seq for seq in self.held() if seq <= self.position.through}
            assert below <= self.stored

    def teardown(self) -> None:
        """The faults end: at most a few exchanges later the outbox is empty."""
        if not hasattr(self, "outbox"):
            return
        try:
            self.up = []
            for _ in range(3 * (self.put + 2)):
                if not len(self.outbox):
                    break
                self.device_reconnects_or_waited_long_enough()
                self.device_sends(LIMIT, set())
                while self.up:
                    self.server_takes(12, "well")
                self.window = self.window.stored(self.position.through, 0.0)
                self.outbox.acknowledge(self.outbox.stream, self.window.acknowledged)
            assert len(self.outbox) == 0, "what is held never arrives"
        finally:
            self.outbox.close()
            self._folder.cleanup()


TestDelivery = Delivery.TestCase
TestDelivery.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(
    st.integers(0, 50),
    st.sets(st.integers(1, 60), max_size=20),
    st.dictionaries(st.integers(1, 60), st.none() | st.integers(0, 60), max_size=20),
)
def test_any_statement_is_taken_without_storing_twice(
    through: int, stored: set[int], arrivals: dict[int, int | None]
) -> None:
    beyond = {seq for seq in stored if seq > through}
    found = arrive(Position(through, max(beyond, default=through)), beyond, arrivals)
    assert not set(found.fresh) & beyond
    assert all(seq > through for seq in found.fresh)
    assert found.position.through >= through
    assert found.position.highest == max([through, *beyond, *found.fresh])
    honest = {seq: seq - 1 if after is None else min(after, seq - 1) for seq, after in arrivals.items()}
    reached = found.position.through
    if reached > through:
        assert reached in arrivals or reached in beyond
    for seq in range(through + 1, reached + 1):
        covered = seq in arrivals or seq in beyond
        assert covered or any(after < seq < above for above, after in honest.items())


def test_a_stream_without_end_beyond_a_gap_is_bounded() -> None:
    arrivals: dict[int, int | None] = dict.fromkeys(range(10, 10 + 3 * MAX_BEYOND_GAP))
    found = arrive(Position(), (), arrivals)
    assert len(found.fresh) == MAX_BEYOND_GAP and found.position.through == 0
    closed = arrive(found.position, found.fresh, {9: 0})
    assert closed.position == Position(9 + MAX_BEYOND_GAP, 9 + MAX_BEYOND_GAP)
