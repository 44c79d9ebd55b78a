"""The danger: a round in a state that the table did not foresee, or one that never ends."""

from __future__ import annotations

from itertools import pairwise

from edgewise_agent.learning import round as rounds
from edgewise_agent.learning.round import (
    MAX_STALLS,
    Acked,
    Announce,
    Begun,
    Failed,
    Fetched,
    ForgetFiles,
    Remember,
    Round,
    Send,
    Stalled,
    Train,
    Trained,
    Update,
    Watch,
    advance,
)
from edgewise_protocol.bounds import CHUNK_BYTES
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

UPDATE = Update(length=5 * CHUNK_BYTES + 1, sha256="0" * 64, samples=10)


def ready() -> Round:
    now = Round(round_id="r1")
    for event in (Begun(), Fetched(), Trained(UPDATE)):
        now, _ = advance(now, event)
    return now


def test_the_attempt_is_durable_before_training_begins() -> None:
    now, _ = advance(Round(round_id="r1"), Begun())
    now, effects = advance(now, Fetched())
    assert now.state == "training"
    assert [type(e) for e in effects if isinstance(e, Remember | Train)] == [Remember, Train]


def test_the_update_is_durable_before_it_is_announced() -> None:
    now, effects = advance(Round(round_id="r1", state="training"), Trained(UPDATE))
    assert now.state == "ready"
    assert [type(e) for e in effects if isinstance(e, Remember | Announce)] == [Remember, Announce]


def test_credits_slide_the_window() -> None:
    now, effects = advance(ready(), Acked(stored=0, credits=2))
    assert effects[0] == Send(0, 2)
    now, effects = advance(now, Acked(stored=1, credits=2))
    assert effects[0] == Send(2, 3)
    now, effects = advance(now, Acked(stored=3, credits=9))
    assert effects[0] == Send(3, 6)
    now, effects = advance(now, Acked(stored=6, credits=0, complete=True))
    assert now.state == "done"
    assert ForgetFiles() in effects


def test_an_old_acknowledgement_sends_nothing_twice() -> None:
    now, _ = advance(ready(), Acked(stored=2, credits=2))
    _, effects = advance(now, Acked(stored=0, credits=2))
    assert not [e for e in effects if isinstance(e, Send)]


def test_a_stall_sends_again_what_is_not_stored_and_waits_longer() -> None:
    now, _ = advance(ready(), Acked(stored=1, credits=2))
    waits = []
    for _ in range(MAX_STALLS - 1):
        now, effects = advance(now, Stalled())
        assert Announce() in effects
        assert Send(1, 3) in effects
        waits += [e.seconds for e in effects if isinstance(e, Watch)]
    assert waits == sorted(waits)
    assert waits[-1] > waits[0]
    now, effects = advance(now, Stalled())
    assert now.state == "failed"
    assert ForgetFiles() not in effects


def test_progress_starts_the_count_of_stalls_anew() -> None:
    now, _ = advance(ready(), Acked(stored=0, credits=1))
    for stored in range(1, 5):
        for _ in range(MAX_STALLS - 1):
            now, _ = advance(now, Stalled())
        now, _ = advance(now, Acked(stored=stored, credits=1))
    assert now.state == "uploading"


@given(st.integers(1, 50 * CHUNK_BYTES))
def test_spans_cover_the_file(length: int) -> None:
    update = Update(length=length, sha256="0" * 64, samples=2)
    spans = [update.span(i) for i in range(update.chunks)]
    assert spans[0][0] == 0
    assert all(a + n == b for (a, n), (b, _) in pairwise(spans))
    assert sum(n for _, n in spans) == length
    assert all(0 < n <= CHUNK_BYTES for _, n in spans)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: no chunk beyond a credit, one training, one end."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Round(round_id="r1")
        self.granted = 0
        self.trainings = 0
        self.ends = 0

    def apply(self, event: rounds.Event) -> None:
        before = self.now
        self.now, effects = advance(before, event)
        for effect in effects:
            self.trainings += isinstance(effect, Train)
            if isinstance(effect, Send):
                assert 0 <= effect.first < effect.end <= min(self.granted, UPDATE.chunks)
        if before.state in ("done", "failed"):
            assert self.now == before
            assert effects == ()
        elif self.now.state in ("done", "failed"):
            self.ends += 1

    @rule()
    def begun(self) -> None:
        self.apply(Begun())

    @rule()
    def fetched(self) -> None:
        self.apply(Fetched())

    @rule()
    def trained(self) -> None:
        self.apply(Trained(UPDATE))

    @rule(stored=st.integers(0, 9), credits_=st.integers(0, 9))
    def acked(self, stored: int, credits_: int) -> None:
        if self.now.update is not None:
            self.granted = max(self.granted, stored + credits_)
        self.apply(Acked(stored, credits_))

    @rule()
    def complete(self) -> None:
        self.apply(Acked(0, 0, complete=True))

    @rule()
    def stalled(self) -> None:
        self.apply(Stalled())

    @rule()
    def failed(self) -> None:
        self.apply(Failed("x", "y"))

    @invariant()
    def holds(self) -> None:
        assert self.trainings <= 1
        assert self.ends <= 1
        assert 0 <= self.now.stored <= UPDATE.chunks
        assert self.now.sent <= max(self.now.allowed, self.now.stored)
        assert self.now.stalls < MAX_STALLS


TestAnyOrder = AnyOrder.TestCase
