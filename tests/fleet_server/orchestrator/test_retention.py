"""Danger: a table or folder grows until the disk is full; or what is still needed is forgotten.

Runs on both databases, whatever the run is about: the deletes are written for either.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from edgewise_server.context import Context, online_description
from edgewise_server.errors import MissingBlobError
from edgewise_server.models.access import AuditEntry
from edgewise_server.models.blobs import Blob
from edgewise_server.models.devices import Device, Enrolment, RevokedCertificate
from edgewise_server.models.federation import Federation, Round, RoundClient
from edgewise_server.models.jobs import Job
from edgewise_server.models.rollouts import Rollout, RolloutDevice, RolloutHistory
from edgewise_server.models.telemetry import Alert, DriftTrack, DriftWindow, ModelWindow, StoredMessage, StreamCursor
from edgewise_server.orchestrator.retention import sweep
from edgewise_server.schema import METADATA
from edgewise_server.services import blobs, leases, retention
from edgewise_server.services.blob_collection import BACKUP_LEASE
from edgewise_server.uploads.store import UploadStore
from sqlmodel import select

DAY_S = 24 * 3600.0
NOW = 4_000 * DAY_S
LONG_AGO = 1 * DAY_S
KEPT = {
    "assignments": "one row a device",
    "attestations": "one row a bundle and role: grows with releases",
    "blobs": "collected by reference, below",
    "broker_state": "one row",
    "devices": "forgotten by people",
    "director_counters": "outlives its device on purpose",
    "federations": "grows with what people start",
    "fleet_ca": "one row",
    "groups": "made by people",
    "leases": "one row a role",
    "memberships": "made by people",
    "model_versions": "grows with releases",
    "outgoing": "forgets its own tombstones",
    "rollouts": "grows with what people start",
    "rounds": "grows with what people start",
    "targets": "a path once signed is never used for other bytes",
    "tokens": "made by people",
    "trust_metadata": "the chain of roots must stay whole",
}
"""Tables that no rule is about, and why they may grow, or do not."""


@pytest.fixture
def site(both_databases: Callable[[Path], str], tmp_path: Path, kit: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """A context with trust, on either database: `.context`, `.ceremony`, `.uploads`."""
    context = kit.make_state(tmp_path / "state", both_databases(tmp_path))
    ceremony = kit.Ceremony(online_description(context.keys, context.authority))
    context.repository.install(ceremony.document(), now=kit.NOW, actor="test")
    yield SimpleNamespace(
        context=context, ceremony=ceremony, uploads=UploadStore(context.settings.state / "uploads"), kit=kit
    )
    context.close()


def run(site: SimpleNamespace, now: float = NOW) -> dict[str, int]:
    def do(step: Callable[[Any], Any]) -> Any:
        with site.context.database.session() as session:
            return step(session)

    return sweep(site.context, site.uploads, do, now, lambda: False)


def add(context: Context, *rows: Any) -> None:
    with context.database.session() as session:
        for row in rows:
            session.add(row)
            session.flush()


def count(context: Context, model: type[Any]) -> int:
    with context.database.session(read_only=True) as session:
        return len(session.exec(select(model)).all())


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def device(name: str) -> Device:
    return Device(id=name, channel="lab", certificate_serial=name, certificate_not_after=at(NOW + DAY_S))


def test_every_table_is_forgotten_by_a_rule_or_kept_for_a_reason() -> None:
    ruled = {rule.table.__tablename__ for rule in retention.RULES}
    assert ruled.isdisjoint(KEPT)
    assert ruled | KEPT.keys() == METADATA.tables.keys()


def of_time(seconds: float, suffix: str) -> list[Any]:
    """A row of every kind that is forgotten by age alone."""
    name, n = f"d-{suffix}", int(seconds)
    message = {"device_id": name, "at": seconds, "received_at": seconds}
    window = {"model": "digits", "version": n, "samples": 1, "sketches": b"{}", "scored": True}
    return [
        device(name),
        StoredMessage(**message, stream="s", seq=1, kind="event", payload=b"{}"),
        ModelWindow(**message, model="digits", version=1),
        DriftWindow(**message, **window),
        DriftTrack(device_id=name, model="digits", version=n),
        StreamCursor(device_id=name, stream="s", changed_at=seconds),
        Alert(
            id=suffix,
            kind="drift",
            severity="x",
            model="digits",
            version=n,
            device_id=name,
            opened_at=seconds,
            closed_at=seconds,
        ),
        AuditEntry(at=at(seconds), actor="x", action="retention-test", subject="x"),
        Enrolment(
            id=f"used-{suffix}", token_sha256=f"u{suffix}", channel="lab", expires_at=at(NOW), used_at=at(seconds)
        ),
        Enrolment(id=f"past-{suffix}", token_sha256=f"p{suffix}", channel="lab", expires_at=at(seconds)),
        RevokedCertificate(serial=suffix, device_id=name, not_after=at(seconds)),
        Job(id=f"job-{suffix}", kind="retrain", state="finished", created_at=seconds, finished_at=seconds),
    ]


def test_what_is_old_is_forgotten_and_what_is_new_is_kept(site: SimpleNamespace) -> None:
    add(site.context, *of_time(NOW, "new"))
    before = {table: count(site.context, table) for table in {type(row) for row in of_time(0, "x")}}
    add(site.context, *of_time(LONG_AGO, "old"))
    told = run(site)
    after = {table: count(site.context, table) for table in before}
    assert after == before | {Device: before[Device] + 1}
    assert told.keys() >= {"messages", "counters", "drift windows", "drift tracks", "alerts", "stream cursors", "audit"}
    assert told.keys() >= {"enrolments", "revoked certificates", "jobs"} and told["enrolments"] == 2
    assert run(site) == {}


def test_a_sweep_goes_in_batches_and_stops_where_it_is_asked(
    site: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH_ROWS", 3)
    old = {"device_id": "d", "stream": "s", "kind": "event", "at": 0, "received_at": LONG_AGO, "payload": b""}
    add(site.context, device("d"), *(StoredMessage(**old, seq=n) for n in range(10)))
    with site.context.database.session() as session:
        assert retention.sweep_one(session, retention.RULES[0], site.context.settings, NOW) == 3
    monkeypatch.setattr(retention, "MAX_BATCHES", 2)
    assert run(site)["messages"] == 6
    assert run(site)["messages"] == 1


def test_an_alert_that_nothing_can_close_any_more_is_closed_then_forgotten(site: SimpleNamespace) -> None:
    values = {"severity": "x", "model": "digits", "version": 1, "device_id": "d", "opened_at": LONG_AGO}
    add(site.context, device("d"), Alert(id="drift", kind="drift", **values), Alert(id="other", kind="flood", **values))
    run(site)
    with site.context.database.session(read_only=True) as session:
        found = {alert.id: alert.closed_at for alert in session.exec(select(Alert)).all()}
    assert found == {"drift": NOW, "other": None}
    run(site, NOW + 365 * DAY_S)
    assert count(site.context, Alert) == 1


def rollout(name: str, status: str, *, ended: float | None = LONG_AGO, group: str = "all") -> Rollout:
    return Rollout(
        id=name,
        model="digits",
        version=1,
        group=group,
        status=status,
        phase_started_at=0,
        created_at=0,
        finished_at=ended,
        plan={},
    )


def exposed(rollout_id: str, device_id: str, **values: Any) -> RolloutDevice:
    row = {"sha256": "", "assignment_version": 1, "outcome": "committed", "exposed_at": 0.0}
    return RolloutDevice(rollout_id=rollout_id, device_id=device_id, **(row | values))


def test_old_rollouts_lose_their_rows_but_for_what_still_holds_a_device(site: SimpleNamespace) -> None:
    add(
        site.context,
        device("d0"),
        device("d1"),
        rollout("old", "completed"),
        rollout("to-revert", "aborted"),
        rollout("other", "completed", group="attic"),
        rollout("running", "running", ended=None),
        exposed("old", "d0"),
        exposed("old", "d1"),
        exposed("to-revert", "d0"),
        exposed("other", "d0"),
        exposed("running", "d0"),
        RolloutHistory(rollout_id="old", at=0, kind="create"),
        RolloutHistory(rollout_id="other", at=0, kind="create"),
        RolloutHistory(rollout_id="running", at=0, kind="create"),
    )
    run(site)
    with site.context.database.session(read_only=True) as session:
        left = {(row.rollout_id, row.device_id) for row in session.exec(select(RolloutDevice)).all()}
        told = {row.rollout_id for row in session.exec(select(RolloutHistory)).all()}
    # d1's newest exposure, what is to be reverted, and what takes late joiners in
    assert left == {("old", "d1"), ("to-revert", "d0"), ("other", "d0"), ("running", "d0")}
    assert told == {"other", "running"}


def federation(name: str, status: str, ended: float | None, **values: Any) -> list[Any]:
    made = Federation(
        id=name,
        name=name,
        model="digits",
        channel="lab",
        training_path="x",
        rounds_wanted=1,
        status=status,
        created_at=0,
        finished_at=ended,
        **values,
    )
    state = "closed" if ended else "aggregating"
    round_ = Round(id=f"{name}-r1", federation_id=name, number=1, state=state, started_at=0, job_id=f"job-{name}")
    job = Job(id=f"job-{name}", kind="sign-offer", state="finished", created_at=0, finished_at=LONG_AGO)
    client = {"device_id": "d", "state": "stored", "length": 1, "sha256": "", "samples": 1}
    return [made, round_, job, RoundClient(round_id=round_.id, announced_at=0, changed_at=0, **client)]


def test_updates_and_clients_of_ended_federations_go_and_those_of_open_rounds_stay(site: SimpleNamespace) -> None:
    add(site.context, device("d"), *federation("old", "finished", LONG_AGO), *federation("open", "running", None))
    for name in ("old-r1", "open-r1", "deleted-r9"):
        site.uploads.write(name, "d", 0, [b"x"])
    run(site)
    assert site.uploads.rounds() == ["open-r1"]
    with site.context.database.session(read_only=True) as session:
        assert session.exec(select(RoundClient.round_id)).all() == ["open-r1"]
        assert session.exec(select(Job.id)).all() == ["job-open"]


def put(site: SimpleNamespace, data: bytes) -> str:
    with site.context.database.session() as session:
        return blobs.add(session, site.context.blobs, data).sha256


def age(site: SimpleNamespace) -> None:
    """Everything in the store has lain there since long ago."""
    for path in site.context.blobs.files():
        os.utime(path, (LONG_AGO, LONG_AGO))
    with site.context.database.session() as session:
        for blob in session.exec(select(Blob)).all():
            blob.created_at = at(LONG_AGO)
            session.add(blob)


def test_only_blobs_that_nothing_refers_to_are_collected(site: SimpleNamespace) -> None:
    signed = site.kit.make_bundle()
    site.kit.publish(site.context, site.ceremony, signed)
    idle, weights, result, reverted = (put(site, bytes([n]) * 1000) for n in range(4))
    before = {"path": "x", "length": 1, "sha256": reverted, "custom": {"chunk_index": "0" * 64}}
    rows = federation("open", "running", None, weights_sha256=weights)
    rows[1].result_sha256 = result
    add(site.context, device("d"), *rows, rollout("r", "completed"), exposed("r", "d", previous=before))
    age(site)
    young = put(site, b"uploaded a moment ago")
    told = run(site, time.time())
    kept = (signed.file.sha256, signed.file.custom.chunk_index, weights, result, reverted, young)
    assert all(site.context.blobs.exists(sha256) for sha256 in kept)
    assert not site.context.blobs.exists(idle)
    assert told["blobs"] == 2  # the file and its chunk index
    with site.context.database.session(read_only=True) as session:
        assert session.get(Blob, idle) is None and session.get(Blob, weights) is not None


def test_the_file_of_a_bundle_that_is_no_longer_signed_goes_and_an_upload_brings_it_back(site: SimpleNamespace) -> None:
    bundle = site.kit.make_bundle()
    site.kit.publish(site.context, site.ceremony, bundle)
    site.ceremony.targets.signed.targets.clear()
    site.kit.publish(site.context, site.ceremony)
    age(site)
    assert run(site, time.time())["blobs"] == 2
    assert not site.context.blobs.exists(bundle.file.sha256)
    with site.context.database.session(read_only=True) as session, pytest.raises(MissingBlobError):
        blobs.require(session, bundle.file.sha256)
    put(site, bundle.data)
    with site.context.database.session(read_only=True) as session:
        assert blobs.require(session, bundle.file.sha256).size == len(bundle.data)


def test_nothing_is_collected_while_a_backup_is_made_or_right_after_an_upload(site: SimpleNamespace) -> None:
    idle = put(site, b"nobody's")
    age(site)
    with site.context.database.session() as session:
        leases.hold(session, BACKUP_LEASE, "another-host:1:x", time.time(), 60)
    run(site, time.time())
    assert site.context.blobs.exists(idle)
    with site.context.database.session() as session:
        leases.release(session, BACKUP_LEASE, "another-host:1:x")
    put(site, b"nobody's")  # the same again: its row is old, its file is new
    run(site, time.time())
    assert site.context.blobs.exists(idle)
    age(site)
    run(site, time.time())
    assert not site.context.blobs.exists(idle)


def test_what_a_crash_left_in_the_store_goes(site: SimpleNamespace) -> None:
    kept = put(site, b"known")
    folder = site.context.settings.state / "blobs"
    (folder / "incoming" / "0011.part").write_bytes(b"half")
    (folder / "ab").mkdir(exist_ok=True)
    (folder / "ab" / ("ab" + "0" * 62)).write_bytes(b"without a row")
    assert run(site, time.time()).get("stray files", 0) == 0
    for name in ("incoming/0011.part", "ab/ab" + "0" * 62):
        os.utime(folder / name, (LONG_AGO, LONG_AGO))
    assert run(site, time.time())["stray files"] == 2
    assert site.context.blobs.exists(kept)
