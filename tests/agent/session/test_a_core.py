"""Guards against a session that storms a broker that is away, stays away from one that is back, or speaks twice."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from edgewise_agent.errors import FetchTimeoutError
from edgewise_agent.session import core
from edgewise_agent.session.retained import RetainedReader
from edgewise_protocol import topics
from hypothesis import given
from hypothesis import strategies as st

POLICY = core.Policy(minimum=1.0, maximum=60.0, stable_after=30.0)


def run(*events: Any, state: core.SessionState | None = None) -> tuple[core.SessionState, tuple[Any, ...]]:
    effects: tuple[Any, ...] = ()
    state = state or core.SessionState()
    for event in events:
        state, effects = core.step(state, event, POLICY)
    return state, effects


ONLINE = (core.Started("a"), core.Accepted(), core.Subscribed(now=0.0))


def test_it_subscribes_before_it_says_that_it_is_there() -> None:
    state, effects = run(core.Started("a"))
    assert effects == (core.Connect("a"),)
    state, effects = run(core.Accepted(), state=state)
    assert effects == (core.Subscribe(),)
    state, effects = run(core.Subscribed(now=1.0), state=state)
    assert effects == (core.Birth("a"), core.TellOnline())


def test_each_connection_has_a_session_of_its_own() -> None:
    _, effects = run(*ONLINE, core.Lost(now=1.0, jitter=0.0), core.WaitOver("b"))
    assert effects == (core.Connect("b"),)


def test_waits_grow_to_the_maximum_and_never_beyond() -> None:
    state, waits = core.SessionState(), []
    state, _ = run(core.Started("a"))
    for _ in range(12):
        state, effects = run(core.Lost(now=0.0, jitter=0.999), state=state)
        waits += [effect.seconds for effect in effects]
        state, _ = run(core.WaitOver("b"), state=state)
    assert waits == sorted(waits) and waits[0] < 1.0 and 59.0 < waits[-1] <= 60.0


def test_only_a_stable_connection_forgives() -> None:
    flapping, effects = run(*ONLINE, core.Lost(now=1.0, jitter=0.0))
    flapping, effects = run(core.WaitOver("b"), core.Accepted(), core.Subscribed(now=2.0), state=flapping)
    _, effects = run(core.Lost(now=3.0, jitter=0.0), state=flapping)
    assert effects == (core.TellOffline(), core.Wait(1.0))
    _, effects = run(core.Lost(now=40.0, jitter=0.0), state=flapping)
    assert effects == (core.TellOffline(), core.Wait(0.5))


events = st.one_of(
    st.builds(core.Started, st.text("ab", min_size=1, max_size=2)),
    st.just(core.Accepted()),
    st.builds(core.Subscribed, now=st.floats(0, 1e6)),
    st.builds(core.Lost, now=st.floats(0, 1e6), jitter=st.floats(0, 0.999)),
    st.builds(core.WaitOver, st.text("ab", min_size=1, max_size=2)),
    st.just(core.Stopped()),
)


@given(st.lists(events, max_size=60))
def test_any_events_keep_one_connection_and_tell_the_truth(order: list[Any]) -> None:
    state, online, open_ = core.SessionState(), False, False
    for event in order:
        if isinstance(event, core.Lost) and not open_:
            continue
        state, effects = core.step(state, event, POLICY)
        if isinstance(event, core.Lost):
            open_ = False
        for effect in effects:
            match effect:
                case core.Connect():
                    assert not open_
                    open_ = True
                case core.TellOnline():
                    assert not online
                    online = True
                case core.TellOffline():
                    assert online
                    online = False
                case core.Farewell() | core.Drop():
                    open_ = False
                case core.Wait(seconds=seconds):
                    assert 0.0 < seconds <= POLICY.maximum
        assert online == (state.phase == "online")
        assert open_ == (state.phase in ("connecting", "subscribing", "online"))


def test_a_chatty_broker_does_not_hold_a_reader_up() -> None:
    """A broker that sends anything but the answer must not keep the installer from rolling back."""

    class Link:
        online, on_own_thread = True, False
        gave_up = False

        def subscribe(self, filters: Any) -> int:
            return 1

        def unsubscribe(self, filters: Any) -> None: ...

        def reconnect(self, reason: str) -> None:
            self.gave_up = True

    link, ended = Link(), threading.Event()
    reader = RetainedReader(link, 0.2)

    def chatter() -> None:
        while not ended.wait(0.02):
            reader.deliver("ew/1/round/other", b"x")

    thread = threading.Thread(target=chatter)
    thread.start()
    began = time.monotonic()
    try:
        with pytest.raises(FetchTimeoutError):
            reader.read([topics.metadata("timestamp.json")])
    finally:
        ended.set()
        thread.join()
    assert time.monotonic() - began < 5 and link.gave_up
