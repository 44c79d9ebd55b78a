"""Danger: a decision is carried out half, twice, or by two processes; an abort leaves a device on the bad version."""

from __future__ import annotations

from typing import Any

import pytest
from edgewise_protocol import topics
from edgewise_protocol.chunks import chunk_count
from edgewise_server.errors import ConflictError, InvalidError, NotFoundError
from edgewise_server.models.rollouts import RolloutDevice
from edgewise_server.orchestrator import rollouts as steps
from edgewise_server.orchestrator.service import Orchestrator
from edgewise_server.services import assignments, rollouts
from sqlmodel import select

CANARY = [{"percent": 10, "min_devices": 1}, {"percent": 100}]
DEVICES = [f"d{n}" for n in range(6)]


def test_a_version_reaches_the_fleet_in_phases(fleet: Any, kit: Any) -> None:
    fleet.publish(kit.make_bundle())
    fleet.add(*DEVICES)
    rollout = fleet.start(1, CANARY)
    fleet.tick()
    assert sum(fleet.versions().values()) == 1
    fleet.until(lambda: fleet.rollout(rollout).status == "completed")
    assert set(fleet.versions().values()) == {1}
    kinds = [kind for kind, _, _ in fleet.rollout(rollout).history]
    assert kinds[:4] == ["create", "start-phase", "assign", "outcome"]
    assert kinds[-1] == "complete" and kinds.count("assign") == 6


def test_what_an_assignment_names_is_retained_before_it(fleet: Any, kit: Any) -> None:
    bundle = kit.make_bundle()
    fleet.publish(bundle)
    fleet.add("d0")
    fleet.start(1, [{"percent": 100}])
    fleet.orchestrator.tick(fleet.now)
    order = kit.outgoing_topics(fleet.context)
    told = order.index("dev/d0/assignment")
    chunks = [topics.blob(bundle.file.sha256, n) for n in range(chunk_count(len(bundle.data)))]
    for name in [*chunks, topics.blob(bundle.file.custom.chunk_index, 0)]:
        assert order.index(name.removeprefix("ew/1/")) < told


def test_a_bad_version_stops_at_the_canary_and_goes_back(fleet: Any, kit: Any) -> None:
    good, bad = kit.make_bundle(), kit.make_bundle(version=2)
    fleet.publish(good, bad)
    fleet.add(*DEVICES)
    first = fleet.start(1, [{"percent": 100}])
    fleet.until(lambda: fleet.rollout(first).status == "completed")
    fleet.bad.add(bad.file.sha256)
    second = fleet.start(2, CANARY)
    fleet.until(lambda: fleet.rollout(second).reverted == 1)
    found = fleet.rollout(second)
    assert (found.status, found.exposed, found.failed) == ("aborted", 1, 1)
    assert "1 of 1 devices failed" in found.reason
    assert set(fleet.versions().values()) == {1}
    canary = next(iter(found.devices))
    assert fleet.accepted[canary] == 3  # a newer assignment that names the older bundle
    assert all(active["digits"][0] == 1 for active in fleet.active.values())
    history = fleet.rollout(second).history
    fleet.tick()
    assert fleet.rollout(second).history == history


def test_a_revert_goes_to_the_last_good_version_not_to_the_last_assigned(fleet: Any, kit: Any) -> None:
    bundles = [kit.make_bundle(version=v) for v in (1, 2, 3)]
    fleet.publish(*bundles)
    fleet.add("d0")
    fleet.complete(1)
    fleet.bad |= {bundles[1].file.sha256, bundles[2].file.sha256}
    paused = fleet.start(2, [{"percent": 100}], gates={"on_breach": "pause"})
    fleet.until(lambda: fleet.rollout(paused).status == "paused")
    assert fleet.versions() == {"d0": 2}
    third = fleet.start(3, [{"percent": 100}])
    fleet.until(lambda: fleet.rollout(third).reverted == 1)
    assert fleet.versions() == {"d0": 1}


def test_a_first_version_that_is_bad_leaves_nothing_assigned(fleet: Any, kit: Any) -> None:
    bundle = kit.make_bundle()
    fleet.publish(bundle)
    fleet.bad.add(bundle.file.sha256)
    fleet.add("d0")
    rollout = fleet.start(1, [{"percent": 100}])
    fleet.until(lambda: fleet.rollout(rollout).reverted == 1)
    assert fleet.versions() == {"d0": 0} and fleet.active["d0"] == {}


def test_a_device_keeps_its_other_models(fleet: Any, kit: Any) -> None:
    fleet.publish(kit.make_bundle(), kit.make_bundle(version=2), kit.make_bundle(model="sounds"))
    fleet.add("d0")
    request = rollouts.RolloutRequest(model="sounds", version=1, group="all", phases=[{"percent": 100}])
    with fleet.context.database.session() as session:
        rollouts.create(session, request, "test", fleet.now)
    fleet.tick()
    fleet.start(1, [{"percent": 100}])
    fleet.tick()
    found = fleet.assignment("d0")
    assert {(f.custom.model, f.custom.version) for f in found.bundles} == {("sounds", 1), ("digits", 1)}
    aborted = fleet.start(2, [{"percent": 100}])
    fleet.tick()
    with fleet.context.database.session() as session:
        rollouts.abort(session, aborted, "", "test", fleet.now)
    fleet.tick()
    found = fleet.assignment("d0")
    assert {(f.custom.model, f.custom.version) for f in found.bundles} == {("sounds", 1), ("digits", 1)}


def test_errors_measured_on_the_device_abort(fleet: Any, kit: Any) -> None:
    fleet.publish(kit.make_bundle(), kit.make_bundle(version=2))
    fleet.add(*DEVICES)
    first = fleet.start(1, [{"percent": 100}])
    fleet.until(lambda: fleet.rollout(first).status == "completed")
    second = fleet.start(2, [{"percent": 10, "soak_s": 60}, {"percent": 100}], gates={"max_error_ratio": 0.1})
    fleet.tick()
    canary = next(iter(fleet.rollout(second).devices))
    fleet.telemetry(canary, version=1, requests=100, errors=100)  # of the version before: does not count
    fleet.tick()
    assert fleet.rollout(second).status == "running"
    fleet.telemetry(canary, version=2, requests=100, errors=30)
    fleet.tick()
    fleet.tick()
    assert fleet.rollout(second).status == "aborted" and "30 of 100" in fleet.rollout(second).reason
    assert set(fleet.versions().values()) == {1}


def test_offline_devices_join_late_and_a_newer_rollout_wins(fleet: Any, kit: Any) -> None:
    fleet.publish(kit.make_bundle(), kit.make_bundle(version=2))
    fleet.add("d0", "d1")
    fleet.add("late", online=False)
    first = fleet.start(1, [{"percent": 100}])
    fleet.until(lambda: fleet.rollout(first).status == "completed")
    assert fleet.versions()["late"] == 0
    second = fleet.start(2, [{"percent": 100}])
    fleet.until(lambda: fleet.rollout(second).status == "completed")
    fleet.online("late", True)
    for _ in range(3):
        fleet.tick(6.0)
    assert fleet.versions() == {"d0": 2, "d1": 2, "late": 2}
    assert "late" not in fleet.rollout(first).devices


def test_a_device_that_never_confirms_counts_as_failed(fleet: Any, kit: Any) -> None:
    fleet.publish(kit.make_bundle())
    fleet.add("d0", "d1")
    rollout = fleet.start(1, [{"percent": 100}], confirm_within_s=10)
    fleet.orchestrator.tick(fleet.now)
    fleet.now += 35
    fleet.orchestrator.tick(fleet.now)
    assert fleet.rollout(rollout).status == "running"
    fleet.now += 10
    fleet.orchestrator.tick(fleet.now)
    assert fleet.rollout(rollout).status == "aborted"


@pytest.mark.parametrize("after", range(6))
def test_killed_anywhere_and_started_again(fleet: Any, kit: Any, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """A process that dies in the middle of a transaction leaves nothing of it; its successor does it once."""
    fleet.publish(kit.make_bundle())
    fleet.add(*DEVICES)
    rollout = fleet.start(1, [{"percent": 100}])
    original = assignments.assign
    calls = []

    def dying(*args: Any) -> Any:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)
        return original(*args)

    monkeypatch.setattr(assignments, "assign", dying)
    with pytest.raises(KeyboardInterrupt):
        fleet.orchestrator.tick(fleet.now)
    assert fleet.rollout(rollout).exposed == 0 and set(fleet.versions().values()) == {0}
    monkeypatch.setattr(assignments, "assign", original)
    fleet.now += fleet.context.settings.lease_s
    fleet.orchestrator = Orchestrator(fleet.context)
    fleet.until(lambda: fleet.rollout(rollout).status == "completed")
    assert fleet.rollout(rollout).committed == 6
    assert [k for k, _, _ in fleet.rollout(rollout).history].count("assign") == 6
    assert set(fleet.accepted.values()) == {1}


def test_run_twice_only_the_holder_of_the_lease_acts(fleet: Any, kit: Any) -> None:
    fleet.publish(kit.make_bundle())
    fleet.add(*DEVICES)
    rollout = fleet.start(1, CANARY)
    other = Orchestrator(fleet.context)
    assert fleet.orchestrator.tick(fleet.now)
    assert not other.tick(fleet.now)
    assert other.tick(fleet.now + fleet.context.settings.lease_s + 1)
    assert not fleet.orchestrator.tick(fleet.now + fleet.context.settings.lease_s + 2)
    assert fleet.rollout(rollout).exposed == 1


def test_the_same_step_taken_twice_changes_nothing(fleet: Any, kit: Any) -> None:
    fleet.publish(kit.make_bundle())
    fleet.add(*DEVICES)
    rollout = fleet.start(1, CANARY)
    for _ in range(3):
        with fleet.context.database.session() as session:
            steps.move(session, fleet.context, rollouts.get(session, rollout), fleet.now)
    assert fleet.rollout(rollout).exposed == 1
    with fleet.context.database.session(read_only=True) as session:
        assert session.exec(select(RolloutDevice.assignment_version)).all() == [1]


def test_a_budget_that_is_too_small_pauses_with_the_reason(fleet: Any, kit: Any) -> None:
    fleet.publish(kit.make_bundle(size=3_000_000))
    fleet.add("d0")
    settings = fleet.context.settings.model_copy(update={"retained_budget_bytes": 2_000_000})
    object.__setattr__(fleet.context, "settings", settings)
    rollout = fleet.start(1, [{"percent": 100}])
    fleet.tick()
    assert fleet.rollout(rollout).status == "paused" and "budget" in fleet.rollout(rollout).history[-1][2]


def test_pause_resume_and_abort_by_hand(fleet: Any, kit: Any) -> None:
    fleet.publish(kit.make_bundle())
    fleet.add(*DEVICES)
    rollout = fleet.start(1, CANARY)
    with fleet.context.database.session() as session:
        rollouts.pause(session, rollout, "lunch", "ann", fleet.now)
    fleet.tick()
    assert fleet.rollout(rollout).exposed == 0
    with fleet.context.database.session() as session, pytest.raises(ConflictError):
        rollouts.pause(session, rollout, "", "ann", fleet.now)
    with fleet.context.database.session() as session:
        rollouts.resume(session, rollout, "", "ann", fleet.now)
    fleet.until(lambda: fleet.rollout(rollout).status == "completed")
    with fleet.context.database.session() as session:
        rollouts.abort(session, rollout, "on second thought", "ann", fleet.now)
    fleet.tick()
    assert fleet.rollout(rollout).reverted == 6 and set(fleet.versions().values()) == {0}
    with fleet.context.database.session() as session, pytest.raises(ConflictError):
        rollouts.resume(session, rollout, "", "ann", fleet.now)


def test_a_rollout_of_what_is_not_there_is_refused(fleet: Any, kit: Any) -> None:
    fleet.publish(kit.make_bundle())
    with pytest.raises(NotFoundError):
        fleet.start(2, CANARY)
    with pytest.raises(InvalidError):
        fleet.start(1, [{"percent": 50}, {"percent": 10}])
    fleet.ceremony.targets.signed.targets.clear()
    fleet.publish()
    with pytest.raises(InvalidError, match="publish it first"):
        fleet.start(1, CANARY)


def test_assignments_are_renewed_before_they_expire_and_unused_blobs_collected(fleet: Any, kit: Any) -> None:
    old, new = kit.make_bundle(), kit.make_bundle(version=2)
    fleet.publish(old, new)
    fleet.add("d0")
    fleet.complete(1)
    before = fleet.assignment("d0")
    fleet.now += fleet.context.settings.assignment_days * 24 * 3600 * 0.7
    fleet.tick()
    after = fleet.assignment("d0")
    assert after.version == before.version + 1 and after.bundles == before.bundles
    fleet.complete(2)
    fleet.tick(100)
    fleet.tick()
    live = kit.outgoing_topics(fleet.context)
    assert f"blob/{new.file.sha256}/0" in live and f"blob/{old.file.sha256}/0" not in live
    assert f"blob/{old.file.custom.chunk_index}/0" not in live
