"""Guards against a sequence of events, crashes and restarts that leaves a device with a model nobody verified,
in a state that no row leads out of, or without the model that it should have fallen back to.

Requirements R1 to R5 are those of `edgewise_agent.install.table`.
"""

from __future__ import annotations

from typing import Any

import pytest
from edgewise_agent.install import effects as do
from edgewise_agent.install import events as on
from edgewise_agent.install.state import InstallState, ModelState, Slot
from edgewise_agent.install.table import MAX_MENDS, TABLE, slot_of, step
from edgewise_protocol.deployment import IN_PROGRESS, DeploymentState
from edgewise_protocol.targets import SignedFile, TargetCustom
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

STATES = DeploymentState.__args__  # type: ignore[attr-defined]
EVENTS = on.Event.__args__  # type: ignore[attr-defined]
RESULTS = [
    on.Downloaded,
    on.Verified,
    on.TurnGranted,
    on.SelfTestPassed,
    on.Confirmed,
    on.Expired,
    on.Fault,
    on.Failed,
]
MAX_BOOTS = 3


def bundle(version: int) -> SignedFile:
    return SignedFile(
        path=f"lab/m/b/{version}.ewb",
        length=1,
        sha256=f"{version:064x}",
        custom=TargetCustom(chunk_index="0" * 64, model="m", version=version),
    )


def assigned(version: int, assignment: int, installed: bool = False) -> on.Assigned:
    return on.Assigned(
        at=1.0,
        target=bundle(version),
        installed=installed,
        assignment_version=assignment,
        deployment="d",
        confirm_within_s=60,
    )


def run(state: ModelState, *events: on.Event) -> tuple[ModelState, tuple[Any, ...]]:
    effects: tuple[Any, ...] = ()
    for event in events:
        state, effects = step(state, event)
    return state, effects


def way(version: int) -> tuple[on.Event, ...]:
    """The good way from downloading to probation."""
    sha = bundle(version).sha256
    return (
        on.Downloaded(at=2, sha256=sha),
        on.Verified(at=3, sha256=sha),
        on.TurnGranted(at=4, sha256=sha),
        on.SelfTestPassed(at=5, sha256=sha),
    )


def committed(version: int, assignment: int = 1) -> ModelState:
    sha = bundle(version).sha256
    state, _ = run(ModelState(model="m"), assigned(version, assignment), *way(version), on.Confirmed(at=6, sha256=sha))
    return state


def test_every_state_has_a_row_for_every_event() -> None:
    assert set(TABLE) == {(state, event) for state in STATES for event in EVENTS}


def test_the_good_way() -> None:
    state = committed(1)
    assert state.state == "committed" and state.active == slot_of(bundle(1))


def test_r2_a_newer_assignment_withdraws_a_target_on_probation() -> None:
    state, effects = run(committed(1), assigned(2, 2), *way(2), assigned(3, 3))
    assert state.state == "downloading" and state.active == slot_of(bundle(1)) and state.previous is None
    assert effects == (do.Restore(slot_of(bundle(1))), do.Download(bundle(3)))


def test_r2_an_abort_during_probation_restores_at_once_without_a_download() -> None:
    state, effects = run(committed(1), assigned(2, 2), *way(2), assigned(1, 3, installed=True))
    assert state.state == "committed" and state.active == slot_of(bundle(1))
    assert do.Restore(slot_of(bundle(1))) in effects and not any(isinstance(e, do.Download) for e in effects)


def test_an_abort_after_the_commit_goes_to_the_self_test_without_a_download() -> None:
    state, _ = run(committed(1), assigned(2, 2), *way(2), on.Confirmed(at=6, sha256=bundle(2).sha256))
    state, effects = run(state, assigned(1, 3, installed=True))
    assert state.state == "staged" and effects == (do.RequestTurn(bundle(1).sha256),)
    state, effects = run(state, *way(1)[2:])
    assert state.state == "probation" and state.previous == slot_of(bundle(2))


@pytest.mark.parametrize("end", [on.Failed, on.Fault])
def test_r3_a_bad_target_is_not_tried_again_for_the_same_assignment(end: Any) -> None:
    state, _ = run(committed(1), assigned(2, 2), *way(2), end(at=7, sha256=bundle(2).sha256, code="x", text="y"))
    assert state.state == "rolled_back" and state.active == slot_of(bundle(1)) and state.error_code == "x"
    again, effects = run(state, assigned(2, 2))
    assert (again, effects) == (state, ())
    renewed, _ = run(state, assigned(2, 3))
    assert renewed.state == "downloading"


def test_r5_a_process_that_keeps_dying_gives_up_the_target_then_everything() -> None:
    state, _ = run(committed(1), assigned(2, 2), *way(2))
    boots = [on.Booted(at=8, max_boots=MAX_BOOTS)] * (MAX_BOOTS + 1)
    state, _ = run(state, *boots)
    assert (state.state, state.active, state.error_code) == ("rolled_back", slot_of(bundle(1)), "boot-loop")
    state, effects = run(state, *boots)
    assert state.active is None and not any(isinstance(e, do.Activate) for e in effects)


def test_r5_a_death_while_another_model_is_loaded_does_not_count() -> None:
    state, _ = run(committed(1), assigned(2, 2), *way(2))
    for _ in range(3 * MAX_BOOTS):
        state, _ = run(state, on.Booted(at=8, max_boots=MAX_BOOTS, counted=False))
    assert state.state == "probation" and state.boots == 0


def test_r6_a_damaged_bundle_gives_way_and_is_downloaded_again_a_bounded_number_of_times() -> None:
    before, _ = run(committed(1), assigned(2, 2), *way(2), on.Confirmed(at=6, sha256=bundle(2).sha256))
    state, effects = run(before, on.Damaged(at=7, sha256=bundle(2).sha256, text="y"))
    assert (state.state, state.active, state.error_code) == ("downloading", slot_of(bundle(1)), "store-damaged")
    assert effects == (do.Restore(slot_of(bundle(1))), do.Download(bundle(2)))
    for _ in range(MAX_MENDS):
        assert state.state == "downloading"
        state, _ = run(state, *way(2)[:3], on.Damaged(at=8, sha256=bundle(2).sha256, text="y"))
    assert (state.state, state.error_code, state.active) == ("failed", "store-damaged", slot_of(bundle(1)))
    again, _ = run(state, assigned(2, 2))
    assert again == state, "the same assignment must not begin it all over"


def test_an_orderly_stop_is_no_crash() -> None:
    state, _ = run(committed(1), assigned(2, 2), *way(2))
    for _ in range(3 * MAX_BOOTS):
        state, _ = run(state, on.Stopped(at=8), on.Booted(at=9, max_boots=MAX_BOOTS))
    assert state.state == "probation" and state.active == slot_of(bundle(2))


def test_settling_does_not_forgive_crashes_on_probation() -> None:
    """A model that kills the process after a minute must not be started for ever."""
    state, _ = run(committed(1), assigned(2, 2), *way(2))
    for _ in range(MAX_BOOTS + 1):
        state, _ = run(state, on.Booted(at=8, max_boots=MAX_BOOTS), on.Settled(at=9))
    assert state.state == "rolled_back"


@pytest.mark.parametrize("before", ["downloading", "verifying", "staged", "self_test"])
def test_time_that_runs_out_fails_the_target_and_keeps_what_serves(before: str) -> None:
    state, _ = run(committed(1), assigned(2, 2))
    for event in way(2):
        if state.state == before:
            break
        state, _ = run(state, event)
    state, _ = run(state, on.Expired(at=9, sha256=bundle(2).sha256))
    assert (state.state, state.error_code, state.active) == ("failed", "confirm-expired", slot_of(bundle(1)))


class Device(RuleBasedStateMachine):
    """A device that carries out effects truthfully, crashes anywhere between persisting and acting, and is
    told anything in any order, also results of work that nobody asked for any more."""

    @initialize()
    def begin(self) -> None:
        self.state = ModelState(model="m")
        self.assignment = 1
        self.verified: set[str] = set()
        self.tested: set[str] = set()
        self.confirmed: set[str] = set()
        self.serving: Slot | None = None
        self.fallback: Slot | None = None
        self.jobs: list[Any] = []
        self.watching = False

    def feed(self, event: on.Event, *, crash: int | None = None) -> None:
        """Step, persist (the new state is kept), then carry out the effects up to a crash."""
        self.state, effects = step(self.state, event)
        for n, effect in enumerate(effects):
            if crash is not None and n >= crash:
                self.die()
                return
            self.carry_out(effect)

    def die(self) -> None:
        self.serving, self.jobs, self.watching = None, [], False
        self.feed(on.Booted(at=1, max_boots=MAX_BOOTS))

    def carry_out(self, effect: Any) -> None:
        match effect:
            case do.Download() | do.Verify() | do.SelfTest() | do.RequestTurn():
                self.jobs = [effect]
            case do.Cancel():
                self.jobs = []
            case do.Activate(slot=slot) | do.Restore(slot=slot):
                if slot is not None:  # R1
                    assert slot.sha256 in self.verified and slot.sha256 in self.tested
                self.serving = slot
            case do.Watch():
                self.watching = True
            case do.Collect():
                state = InstallState().with_model(self.state)
                self.verified &= state.referenced()

    @rule(version=st.integers(1, 4), newer=st.booleans(), crash=st.none() | st.integers(0, 2))
    def assign(self, version: int, newer: bool, crash: int | None) -> None:
        self.assignment += newer
        file = bundle(version)
        self.feed(assigned(version, self.assignment, file.sha256 in self.verified), crash=crash)

    @rule(crash=st.none() | st.integers(0, 2))
    def unassign(self, crash: int | None) -> None:
        self.assignment += 1
        self.feed(on.Unassigned(at=1), crash=crash)

    @rule(version=st.integers(1, 4), steps=st.sampled_from([1, 2, 3, 4, 4, 4]), confirm=st.booleans())
    def things_go_well(self, version: int, steps: int, confirm: bool) -> None:
        """Reaches the depths that single steps seldom do."""
        self.assign(version=version, newer=True, crash=None)
        for _ in range(steps):
            if self.jobs:
                self.work_ends(good=True, crash=None)
        if confirm and self.watching and self.state.state == "probation":
            self.probation_ends(kind="confirm", crash=None)

    @precondition(lambda self: self.jobs)
    @rule(good=st.booleans(), crash=st.none() | st.integers(0, 2))
    def work_ends(self, good: bool, crash: int | None) -> None:
        job = self.jobs.pop()
        sha = job.sha256 if isinstance(job, do.RequestTurn) else job.target.sha256
        if not good and not isinstance(job, do.RequestTurn):
            self.feed(on.Failed(at=1, sha256=sha, code="x", text="y"), crash=crash)
            return
        match job:
            case do.Download():
                event: on.Event = on.Downloaded(at=1, sha256=sha)
            case do.Verify():
                self.verified.add(sha)
                event = on.Verified(at=1, sha256=sha)
            case do.RequestTurn():
                event = on.TurnGranted(at=1, sha256=sha)
            case _:
                assert sha in self.verified
                self.tested.add(sha)
                self.fallback = self.serving
                event = on.SelfTestPassed(at=1, sha256=sha)
        self.feed(event, crash=crash)

    @precondition(lambda self: self.watching and self.state.state == "probation")
    @rule(kind=st.sampled_from(["confirm", "fault", "expired", "failed"]), crash=st.none() | st.integers(0, 2))
    def probation_ends(self, kind: str, crash: int | None) -> None:
        assert self.state.target is not None
        sha = self.state.target.sha256
        self.watching = False
        if kind == "confirm":
            self.confirmed.add(sha)
            self.feed(on.Confirmed(at=1, sha256=sha), crash=crash)
        elif kind == "expired":
            self.feed(on.Expired(at=1, sha256=sha), crash=crash)
        else:
            event = on.Fault if kind == "fault" else on.Failed
            self.feed(event(at=1, sha256=sha, code="x", text="y"), crash=crash)
        if kind != "confirm" and self.state.boots == 0:
            assert self.serving == self.fallback, "it does not fall back to what served before"

    @rule(version=st.integers(1, 4), kind=st.sampled_from(RESULTS))
    def stale_result(self, version: int, kind: Any) -> None:
        """R4."""
        sha = bundle(version).sha256
        target, active = self.state.target, self.state.active
        if (target is not None and target.sha256 == sha) or (active is not None and active.sha256 == sha):
            return
        before = self.state
        more = {"code": "x", "text": "y"} if kind in (on.Failed, on.Fault) else {}
        self.feed(kind(at=1, sha256=sha, **more))
        assert self.state == before

    @rule(of_target=st.booleans(), crash=st.none() | st.integers(0, 2))
    def the_disk_damages(self, of_target: bool, crash: int | None) -> None:
        """R6."""
        state = self.state
        sha = state.target.sha256 if of_target and state.target else state.active.sha256 if state.active else ""
        if not sha or (state.previous is not None and state.previous.sha256 == sha):
            return
        # Fetched again, it is the same bytes: what was tested and confirmed of them stays so.
        self.verified.discard(sha)
        self.feed(on.Damaged(at=1, sha256=sha, text="y"), crash=crash)
        assert self.serving is None or self.serving.sha256 != sha, "it serves what nobody verified"

    @rule()
    def crash(self) -> None:
        self.die()

    @rule()
    def restart(self) -> None:
        self.feed(on.Stopped(at=1))
        self.die()

    @rule()
    def settle(self) -> None:
        self.feed(on.Settled(at=1))

    @invariant()
    def the_state_is_legal(self) -> None:
        if not hasattr(self, "state"):
            return
        state = self.state
        assert state.state in STATES
        assert self.serving == state.active
        if state.state in IN_PROGRESS:
            assert state.target is not None
            assert self.jobs or state.state == "probation", "work in progress that nobody does"
        if state.state == "probation":
            assert state.target is not None and state.active == slot_of(state.target)
        elif state.active is not None:  # R2
            assert state.active.sha256 in self.confirmed
        if state.state == "committed":
            assert state.target is not None and state.active == slot_of(state.target)
        if state.previous is not None:
            assert state.previous.sha256 in self.confirmed and state.previous != state.active
        for slot in (state.active, state.previous):
            assert slot is None or slot.sha256 in self.verified, "the store lost what may have to serve"


Device.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestDevice = Device.TestCase


@given(st.lists(st.integers(0, len(EVENTS) - 1), max_size=30), st.data())
@settings(max_examples=200, deadline=None)
def test_any_events_at_all_lead_to_a_legal_state(order: list[int], data: Any) -> None:
    """Without any truth in them: no event raises, and probation always has its target active."""
    state = ModelState(model="m")
    for n in order:
        kind = EVENTS[n]
        sha = bundle(data.draw(st.integers(1, 2))).sha256
        if kind is on.Assigned:
            event: Any = assigned(data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3)), data.draw(st.booleans()))
        elif kind is on.Booted:
            event = on.Booted(at=1, max_boots=MAX_BOOTS)
        elif kind in (on.Unassigned, on.Settled, on.Stopped):
            event = kind(at=1)
        elif kind in (on.Failed, on.Fault):
            event = kind(at=1, sha256=sha, code="x", text="y")
        elif kind is on.Damaged:
            event = on.Damaged(at=1, sha256=sha, text="y")
        else:
            event = kind(at=1, sha256=sha)
        state, _ = step(state, event)
        assert state.state in STATES
        assert state.state not in IN_PROGRESS or state.target is not None
        assert state.state != "probation" or (state.target and state.active == slot_of(state.target))
