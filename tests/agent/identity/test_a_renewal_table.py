"""Danger: a device renews too late, hammers the server, or never asks again; a restart is taken for a clone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from edgewise_agent.identity import clones, renewal
from edgewise_agent.identity.renewal import (
    FINAL,
    Answered,
    Ask,
    Event,
    Failed,
    Hasten,
    Install,
    Installed,
    Look,
    Online,
    Policy,
    Reconnect,
    State,
    Tell,
    Troubled,
    begin,
    step,
)
from edgewise_agent.session.endings import REFUSALS, SESSION_TAKEN_OVER, classify
from hypothesis import given, settings
from hypothesis import strategies as st

POLICY = Policy()


def run(state: State, *events: Event) -> tuple[State, list[object]]:
    effects: list[object] = []
    for event in events:
        state, more = step(state, event, POLICY)
        effects += more
    return state, effects


@pytest.mark.parametrize(("used", "asks"), [(0.0, False), (0.66, False), (0.667, True), (3.0, True), (-1.0, False)])
def test_it_asks_when_two_thirds_of_the_life_are_over(used: float, asks: bool) -> None:
    state, effects = run(State(), Look(0.0, used))
    assert effects == ([Ask("lifetime")] if asks else [])
    assert state.phase == ("asking" if asks else "settled")


def test_it_asks_when_the_offline_keys_no_longer_name_its_intermediate() -> None:
    assert run(State(), Look(0.0, 0.1, intermediate_named=False))[1] == [Ask("intermediate")]


def test_one_refusal_is_borne_and_two_are_not_and_success_forgets_them() -> None:
    refused = Troubled(0.0, refused=True)
    assert run(State(), refused)[1] == []
    assert run(State(), refused, refused)[1] == [Ask("refused")]
    assert run(State(), refused, Online(), refused)[1] == []


def test_a_broker_that_is_away_for_long_makes_it_ask_where_it_is() -> None:
    lost = Troubled(0.0, refused=False)
    assert run(State(), *[lost] * (POLICY.unreachable - 1))[1] == []
    assert run(State(), *[lost] * POLICY.unreachable)[1] == [Ask("unreachable")]


def test_a_good_answer_is_installed_and_used() -> None:
    state, effects = run(State(), Look(0.0, 0.9), Answered(), Installed(1.0, 0.0))
    assert effects == [Ask("lifetime"), Install(), Tell(), Hasten(slow=False), Reconnect()]
    assert state.phase == "settled"


def test_a_failure_waits_with_backoff_and_the_servers_own_wait_counts() -> None:
    state, effects = run(State(), Look(0.0, 0.9), Failed(0.0, 0.0, "server-unreachable", "no", 100.0))
    assert (state.phase, state.not_before, effects[-1]) == ("waiting", 100.0, Tell("server-unreachable", "no"))
    assert run(state, Look(99.0, 0.9), Troubled(99.0, refused=True), Troubled(99.0, refused=True))[1] == []
    assert run(state, Look(100.0, 0.9))[1] == [Ask("lifetime")]


def test_a_server_that_is_busy_is_not_given_up_for_hours() -> None:
    """After a theft a whole fleet renews at once: who waits longer than that is the last for nothing."""
    state = State("asking", attempt=20)
    busy, _ = run(state, Failed(0.0, 1.0, "too-many-requests", "later", 7.0))
    broken, _ = run(state, Failed(0.0, 1.0, "server-unreachable", "no answer"))
    assert (busy.not_before, broken.not_before) == (POLICY.busy, POLICY.maximum)


def test_what_is_no_longer_needed_is_no_longer_asked() -> None:
    state, _ = run(State(), *[Troubled(0.0, refused=True)] * 2, Failed(0.0, 0.0, "busy", "no"))
    state, effects = run(state, Online(), Look(1e6, 0.1))
    assert (state.phase, effects) == ("settled", [Tell(), Hasten(slow=False)])


@pytest.mark.parametrize("code", sorted(FINAL))
def test_who_is_told_that_his_time_is_over_says_so_and_is_quiet(code: str) -> None:
    state, effects = run(State(), Look(0.0, 0.9), Failed(0.0, 0.0, code, "why"))
    assert effects[-2:] == [Tell(code, "why"), Hasten(slow=True)]
    troubles = [Troubled(float(n), refused=True) for n in range(0, int(POLICY.ended), 60)]
    state, effects = run(state, *troubles, Look(POLICY.ended - 1, 2.0))
    assert effects == []
    # a restart of the agent asks no sooner
    soon = (Troubled(1.0, refused=True), Troubled(2.0, refused=True), Look(3.0, 9.0))
    assert run(begin(code, POLICY, 0.0), *soon)[1] == []
    # a broker that lets it in all the same changes nothing at once: it may be one that checks nobody
    state, effects = run(state, Online(), Look(POLICY.ended - 1, 0.1))
    assert effects == []
    assert run(state, Look(POLICY.ended, 0.1))[1] == [Tell(), Hasten(slow=False)]
    assert run(state, Look(POLICY.ended, 0.9))[1] == [Ask("lifetime")]


EVENTS = st.one_of(
    st.builds(Look, st.just(0.0), st.floats(-2, 5), st.booleans()),
    st.builds(Troubled, st.just(0.0), st.booleans()),
    st.just(Online()),
    st.just(Answered()),
    st.builds(Installed, st.just(0.0), st.floats(0, 0.999)),
    st.builds(
        Failed,
        st.just(0.0),
        st.floats(0, 0.999),
        st.sampled_from(["busy", "server-unreachable", "storage", *sorted(FINAL)]),
        st.just("text"),
        st.floats(0, 3600),
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.floats(0, 30)), max_size=200))
def test_whatever_befalls_questions_are_bounded_and_every_answer_finds_its_phase(
    course: list[tuple[Event, float]],
) -> None:
    """Even where renewing helps nothing, and where the clock or the metadata always say that it is due."""
    state, now, questions = State(), 0.0, []
    for event, pause in course:
        now += pause
        timed = event if isinstance(event, Online | Answered) else type(event)(**{**vars(event), "now": now})
        before = state.phase
        state, effects = step(state, timed, POLICY)
        asked = [effect for effect in effects if isinstance(effect, Ask)]
        assert len(asked) <= 1
        assert not asked or before in ("settled", "waiting", "ended")
        assert (Install() in effects) == (before == "asking" and isinstance(event, Answered))
        assert (Reconnect() in effects) == (before == "installing" and isinstance(event, Installed))
        questions += [now] * len(asked)
    for first, second in pairwise(questions):
        assert second - first >= POLICY.minimum * 0.5


def test_a_process_that_is_cut_off_again_and_again_is_not_alone() -> None:
    policy = clones.Policy()
    state = clones.Takeovers()
    for number in range(policy.takeovers):
        assert not state.cloned
        state = clones.taken_over(state, number * 60.0, policy)
    assert state.cloned
    last = (policy.takeovers - 1) * 60.0
    assert clones.pass_time(state, last + policy.forget, policy).cloned
    assert not clones.pass_time(state, last + policy.forget + 1, policy).cloned


def test_takeovers_that_lie_far_apart_accuse_nobody() -> None:
    policy = clones.Policy()
    state = clones.Takeovers()
    for number in range(20):
        state = clones.taken_over(state, number * (policy.within / (policy.takeovers - 1) + 1), policy)
        assert not state.cloned


@pytest.mark.parametrize(
    ("changes", "ending"),
    [
        ({"opened": False}, "unreachable"),
        ({"tls_failed": True}, "refused"),
        ({}, "refused"),  # TLS 1.3: the broker's alert comes after the client's handshake
        ({"tls": False}, "unreachable"),
        ({"tls": False, "connack": 0x87}, "refused"),
        ({"connack": 0x88}, "unreachable"),  # server unavailable
        ({"accepted": True, "disconnect": SESSION_TAKEN_OVER}, "taken-over"),
        ({"accepted": True, "disconnect": 0x8B}, "lost"),  # server shutting down
        ({"accepted": True}, "lost"),
    ],
)
def test_the_end_of_a_connection_is_named(changes: dict[str, object], ending: str) -> None:
    facts = {"tls": True, "opened": True, "accepted": False, "connack": 0, "disconnect": 0, "tls_failed": False}
    assert classify(**(facts | changes)) == ending  # type: ignore[arg-type]
    assert 0x87 in REFUSALS and renewal.RENEW_AT < 1
