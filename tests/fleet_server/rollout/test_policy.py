"""Danger: a bad version reaches more devices than its phase allows, or a rollout waits for a device that is off."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest
from edgewise_server.rollout.facts import (
    Abort,
    AssignDevice,
    Complete,
    Decision,
    DeviceFact,
    Exposure,
    Pause,
    RevertDevice,
    RolloutState,
    StartPhase,
)
from edgewise_server.rollout.plan import Gates, Phase, Plan, PlanError
from edgewise_server.rollout.policy import cohort, decide, rank
from hypothesis import given, settings
from hypothesis import strategies as st

CANARY = (Phase(percent=10, min_devices=1, soak_s=5), Phase(percent=50), Phase(percent=100))


@dataclass
class Fleet:
    """A fleet in memory that carries decisions out, as the orchestrator does with rows."""

    plan: Plan
    devices: dict[str, DeviceFact]
    state: RolloutState = field(default_factory=lambda: RolloutState("running"))
    now: float = 1000.0
    log: list[Decision] = field(default_factory=list)

    @property
    def exposed(self) -> list[DeviceFact]:
        return [d for d in self.devices.values() if d.exposure is not None]

    def decide(self) -> list[Decision]:
        return decide(self.plan, self.state, list(self.devices.values()), self.now)

    def step(self) -> list[Decision]:
        decisions = self.decide()
        for decision in decisions:
            match decision:
                case AssignDevice(device):
                    assert self.devices[device].exposure is None
                    self.change(device, exposure=Exposure(exposed_at=self.now))
                case RevertDevice(device):
                    self.expose(device, reverted=True)
                case StartPhase(index):
                    self.state = dataclasses.replace(self.state, phase=index, phase_started_at=self.now)
                case Complete():
                    self.state = dataclasses.replace(self.state, status="completed")
                case Pause():
                    self.state = dataclasses.replace(self.state, status="paused")
                case Abort():
                    self.state = dataclasses.replace(self.state, status="aborted")
        self.log += decisions
        return decisions

    def change(self, device: str, **values: object) -> None:
        self.devices[device] = dataclasses.replace(self.devices[device], **values)

    def expose(self, device: str, **values: object) -> None:
        exposure = self.devices[device].exposure
        assert exposure is not None
        self.change(device, exposure=dataclasses.replace(exposure, **values))

    def end(self, device: str, outcome: str) -> None:
        self.expose(device, outcome=outcome, ended_at=self.now)

    def settle(self, outcome: str = "committed") -> None:
        for device in self.exposed:
            if device.exposure is not None and device.exposure.outcome == "pending" and device.online:
                self.end(device.device_id, outcome)


def fleet(size: int, phases: tuple[Phase, ...] = CANARY, *, offline: int = 0, **plan: object) -> Fleet:
    devices = {f"d{n}": DeviceFact(f"d{n}", online=n >= offline) for n in range(size)}
    return Fleet(Plan("rollout-1", phases, **plan), devices)  # type: ignore[arg-type]


def test_a_good_version_goes_through_all_phases() -> None:
    world = fleet(20)
    sizes = []
    for _ in range(40):
        world.step()
        world.now += 3
        world.settle()
        sizes.append(len(world.exposed))
        if world.state.status == "completed":
            break
    assert world.state.status == "completed"
    assert sorted(set(sizes)) == [2, 10, 20]
    assert len([d for d in world.log if isinstance(d, StartPhase)]) == 2


def test_the_canary_is_chosen_by_hash_and_not_by_order() -> None:
    world = fleet(50)
    decisions = world.decide()
    world.devices = dict(reversed(world.devices.items()))
    assert world.decide() == decisions
    chosen = {d.device_id for d in decisions if isinstance(d, AssignDevice)}
    assert chosen == set(sorted(world.devices, key=lambda d: rank("rollout-1", d))[:5])
    other = decide(dataclasses.replace(world.plan, rollout_id="rollout-2"), world.state, [*world.devices.values()], 0)
    assert {d.device_id for d in other if isinstance(d, AssignDevice)} != chosen


def test_the_soak_begins_when_the_last_device_has_ended() -> None:
    world = fleet(10)
    world.step()
    world.settle()
    world.now += 4.9
    assert world.step() == []
    world.now += 0.2
    assert isinstance(world.step()[0], StartPhase)


def test_a_failing_canary_stops_the_rollout_and_reverts_it() -> None:
    world = fleet(10)
    world.step()
    canary = world.exposed[0].device_id
    world.settle("failed")
    (decision,) = world.step()
    assert isinstance(decision, Abort) and "1 of 1 devices failed" in decision.reason
    assert world.step() == [RevertDevice(canary, "the rollout was aborted")]
    assert world.step() == []
    assert len(world.exposed) == 1


def test_a_breach_can_pause_instead_and_resuming_forgives_what_is_known() -> None:
    world = fleet(10, gates=Gates(on_breach="pause"))
    world.step()
    world.settle("failed")
    assert isinstance(world.step()[0], Pause)
    assert world.step() == []
    world.state = dataclasses.replace(world.state, status="running", gates_from=world.now)
    world.now += 10
    assert isinstance(world.step()[0], StartPhase)


@pytest.mark.parametrize(
    ("gates", "measured", "word"),
    [
        (Gates(max_error_ratio=0.1), {"requests": 100, "errors": 11}, "inferences failed"),
        (Gates(max_p95_ms=10), {"requests": 100, "p95_ms": 11.0}, "95th percentile"),
        (Gates(max_drift_alerts=0), {"drift_alerts": 1}, "drift alerts"),
    ],
)
def test_a_model_that_installs_but_is_not_well_is_stopped(gates: Gates, measured: dict[str, int], word: str) -> None:
    world = fleet(10, gates=gates)
    world.step()
    device = world.exposed[0].device_id
    world.settle()
    world.expose(device, **measured)
    (decision,) = world.step()
    assert isinstance(decision, Abort) and word in decision.reason


def test_too_few_requests_say_nothing_about_errors() -> None:
    world = fleet(10, gates=Gates(max_error_ratio=0.1, min_requests=20))
    world.step()
    world.settle()
    world.expose(world.exposed[0].device_id, requests=19, errors=19)
    assert world.step() == []


def test_offline_devices_neither_block_nor_count() -> None:
    world = fleet(20, offline=10)
    for _ in range(30):
        world.step()
        world.now += 10
        world.settle()
    assert world.state.status == "completed"
    assert len(world.exposed) == 10
    gone = world.exposed[0].device_id
    world.change("d0", online=True)
    assert [d.device_id for d in world.step() if isinstance(d, AssignDevice)] == ["d0"]
    world.change(gone, online=False)
    assert world.step() == []


def test_a_device_that_goes_offline_while_it_installs_does_not_hold_the_phase() -> None:
    world = fleet(20)
    world.step()
    first, second = (d.device_id for d in world.exposed)
    world.change(first, online=False)
    assert world.step() == []
    world.end(second, "committed")
    world.now += 10
    assert isinstance(world.step()[0], StartPhase)


def test_a_phase_does_not_pass_when_nobody_has_reported() -> None:
    world = fleet(20)
    world.step()
    for device in world.exposed:
        world.change(device.device_id, online=False)
    world.now += 1e6
    assert world.step() == []


def test_min_reporting_asks_for_a_share_of_the_exposed() -> None:
    world = fleet(20, gates=Gates(min_reporting=1.0))
    world.step()
    first, second = (d.device_id for d in world.exposed)
    world.end(second, "committed")
    world.change(first, online=False)
    world.now += 100
    assert world.step() == []


def test_concurrency_and_rate_bound_what_is_exposed() -> None:
    world = fleet(100, (Phase(100),), max_concurrent=7)
    assert len(world.step()) == 7
    assert world.step() == []
    world.end(world.exposed[0].device_id, "committed")
    assert len(world.step()) == 1
    slow = fleet(100, (Phase(100),), rate_per_minute=3)
    assert len(slow.step()) == 3
    slow.settle()
    assert slow.step() == []
    slow.now += 61
    assert len(slow.step()) == 3


def test_devices_that_a_newer_rollout_has_are_left_alone() -> None:
    world = fleet(10, (Phase(100),))
    world.step()
    world.settle()
    for n in range(9):
        world.change(f"d{n}", held=True)
    world.state = dataclasses.replace(world.state, status="aborted")
    assert [d.device_id for d in world.step() if isinstance(d, RevertDevice)] == ["d9"]


def test_devices_that_no_bundle_fits_do_not_count() -> None:
    world = fleet(10, (Phase(100),))
    for n in range(5):
        world.change(f"d{n}", available=False)
    assert {d.device_id for d in world.step() if isinstance(d, AssignDevice)} == {f"d{n}" for n in range(5, 10)}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Plan("r", ()),
        lambda: Plan("r", (Phase(50), Phase(10))),
        lambda: Phase(0),
        lambda: Phase(10, soak_s=-1),
        lambda: Gates(max_failed_ratio=1.1),
        lambda: Plan("r", CANARY, max_concurrent=0),
    ],
)
def test_plans_that_contradict_themselves_are_refused(make: object) -> None:
    with pytest.raises(PlanError):
        make()  # type: ignore[operator]


PLANS = st.builds(
    lambda percents, minimum, soak, concurrent, rate, ratio: Plan(
        "r",
        tuple(Phase(p, minimum, soak) for p in sorted(percents)),
        Gates(max_failed_ratio=ratio),
        max_concurrent=concurrent,
        rate_per_minute=rate,
    ),
    st.lists(st.integers(1, 100), min_size=1, max_size=4),
    st.integers(0, 3),
    st.sampled_from([0.0, 5.0]),
    st.integers(1, 40),
    st.none() | st.integers(1, 10),
    st.sampled_from([0.0, 0.3, 1.0]),
)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["commit", "fail", "offline", "online", "tick", "abort"]),
        st.integers(0, 29),
        st.integers(0, 70),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(PLANS, st.integers(1, 30), EVENTS)
def test_whatever_happens(plan: Plan, size: int, events: list[tuple[str, int, int]]) -> None:
    """Never more than the phase allows, never un-exposed, asking twice changes nothing, an abort reverts all."""
    world = Fleet(plan, {f"d{n}": DeviceFact(f"d{n}", online=True) for n in range(size)})
    for kind, number, seconds in events:
        device = f"d{number % size}"
        exposure = world.devices[device].exposure
        if kind in ("commit", "fail") and exposure is not None and exposure.outcome == "pending":
            world.end(device, "committed" if kind == "commit" else "failed")
        elif kind in ("offline", "online"):
            world.change(device, online=kind == "online")
        elif kind == "abort":
            world.state = dataclasses.replace(world.state, status="aborted")
        world.now += seconds
        assert world.decide() == world.decide()
        before = {d.device_id for d in world.exposed}
        phase = len(plan.phases) - 1 if world.state.status == "completed" else world.state.phase
        allowed = plan.phases[phase].allowed(len(cohort(list(world.devices.values()))))
        decisions = world.step()
        after = {d.device_id for d in world.exposed}
        assert before <= after
        if after > before:
            assert len(after) <= allowed
            assert world.state.status in ("running", "completed")
            assert all(world.devices[d].online for d in after - before)
            pending = [d for d in world.exposed if d.online and d.exposure and d.exposure.outcome == "pending"]
            assert len(pending) <= plan.max_concurrent
        if any(isinstance(d, AssignDevice) for d in decisions):
            assert all(isinstance(d, AssignDevice) for d in decisions)
    world.state = dataclasses.replace(world.state, status="aborted")
    while world.step():
        pass
    assert all(d.exposure is not None and d.exposure.reverted for d in world.exposed)


@settings(max_examples=60, deadline=None)
@given(PLANS, st.integers(1, 30), st.sets(st.integers(0, 29)))
def test_a_good_version_always_arrives_where_devices_are_online(plan: Plan, size: int, offline: set[int]) -> None:
    world = Fleet(plan, {f"d{n}": DeviceFact(f"d{n}", online=n not in offline) for n in range(size)})
    for _ in range(400):
        world.step()
        world.now += 61
        world.settle()
        if world.state.status == "completed" and not world.decide():
            break
    online = [d for d in world.devices.values() if d.online]
    if online and plan.phases[-1].allowed(len(online)):
        assert world.state.status == "completed"
        assert len(world.exposed) == plan.phases[-1].allowed(len(online))
