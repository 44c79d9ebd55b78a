"""Danger: a server that is lost with its disk cannot be made again, or comes back with versions that devices refuse."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from edgewise_protocol.assignment import Accepted, verify_assignment
from edgewise_protocol.facts import DeviceFacts
from edgewise_server.backup.archive import ArchiveReader
from edgewise_server.backup.create import create_backup
from edgewise_server.backup.errors import ArchiveError, BackupError, NewerArchiveError, NotEmptyError
from edgewise_server.backup.fast_forward import LEAP
from edgewise_server.backup.restore import restore_backup
from edgewise_server.context import Context, online_description, open_context
from edgewise_server.models.access import AuditEntry
from edgewise_server.models.devices import Device, Enrolment
from edgewise_server.models.federation import Federation, Round, RoundClient
from edgewise_server.models.outgoing import BrokerState, Outgoing
from edgewise_server.models.telemetry import StoredMessage
from edgewise_server.services import assignments, audit, leases, metadata, registry
from edgewise_server.services.blob_collection import BACKUP_LEASE
from edgewise_server.settings import load_settings
from edgewise_server.uploads.store import UploadStore
from sqlmodel import select
from tuf.api.metadata import Metadata

UPDATE = bytes(range(256)) * 1024


def quiet(_: str) -> None:
    """Progress that nobody reads."""


def fill(context: Context, ceremony: Any, kit: Any) -> None:
    """A fleet at work: a signed bundle, two assigned devices, messages, and a round with an update."""
    context.repository.install(ceremony.document(), now=kit.NOW, actor="test")
    kit.publish(context, ceremony, kit.make_bundle())
    facts = DeviceFacts(machine="aarch64", compatible=("raspberry-pi-4-64",), engines={"onnxruntime": "1.32.0"})
    with context.database.session() as session:
        bundle = registry.bundle_for(session, "digits", 1, facts, channel="lab")
        assert bundle is not None
        for device_id in ("cam-1", "cam-2"):
            device = Device(
                id=device_id, channel="lab", certificate_serial=device_id, certificate_not_after=kit.expiring(9)
            )
            session.add(device)
            session.flush()
            for _ in range(3):
                assignments.assign(session, context, device, [bundle], "rollout-1", 60)
        for name, used_at in (("used", kit.NOW), ("waiting", None)):
            session.add(
                Enrolment(
                    id=name, token_sha256=name, channel="lab", name=name, expires_at=kit.expiring(9), used_at=used_at
                )
            )
        session.add(
            StoredMessage(
                device_id="cam-1",
                stream="s",
                seq=2**40,
                kind="event",
                at=math.inf,
                received_at=1.5,
                payload=b"\x00\xff{}",
            )
        )
        federation = Federation(
            id="fed-1",
            name="f",
            model="digits",
            channel="lab",
            training_path="x",
            rounds_wanted=1,
            status="running",
            created_at=1,
        )
        session.add(federation)
        session.flush()
        session.add(Round(id="fed-1-r1", federation_id="fed-1", number=1, state="collecting", started_at=1))
        session.flush()
        for device_id, state in (("cam-1", "stored"), ("cam-2", "uploading")):
            session.add(
                RoundClient(
                    round_id="fed-1-r1",
                    device_id=device_id,
                    state=state,
                    length=len(UPDATE),
                    sha256=hashlib.sha256(UPDATE).hexdigest(),
                    samples=3,
                    chunks_through=2 if state == "stored" else 1,
                    announced_at=1,
                    changed_at=1,
                )
            )
    uploads = UploadStore(context.settings.state / "uploads")
    uploads.write("fed-1-r1", "cam-1", 0, [UPDATE[: 128 * 1024], UPDATE[128 * 1024 :]])
    uploads.write("fed-1-r1", "cam-2", 0, [UPDATE[: 128 * 1024]])
    (context.settings.state / "server.toml").write_text("tick_s = 0.25\n")
    (context.settings.state / "broker").mkdir()
    (context.settings.state / "broker" / "acl").write_text("user edgewise-server\n")
    (context.settings.state / "broker" / "server.key").write_text("-----BEGIN PRIVATE KEY-----\n")


@pytest.fixture
def old(both_databases: Callable[[Path], str], tmp_path: Path, kit: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """A full server on either database: `.context`, `.ceremony`."""
    context = kit.make_state(tmp_path / "old", both_databases(tmp_path))
    ceremony = kit.Ceremony(online_description(context.keys, context.authority))
    fill(context, ceremony, kit)
    yield SimpleNamespace(context=context, ceremony=ceremony)
    context.close()


def backup(context: Context, path: Path, *, with_keys: bool = True) -> str:
    return create_backup(context.settings, path, with_keys=with_keys, progress=quiet).manifest_sha256


@pytest.fixture
def restored(old: SimpleNamespace, both_databases: Callable[[Path], str], tmp_path: Path) -> Iterator[SimpleNamespace]:
    """`old` in a new folder: `.before`, `.context`, `.ceremony`, `.report`."""
    backup(old.context, tmp_path / "b.tar")
    (tmp_path / "new").mkdir()
    url = both_databases(tmp_path / "new")
    (tmp_path / "new" / "server.toml").write_text(f'database_url = "{url}"\n')
    report = restore_backup(tmp_path / "new", tmp_path / "b.tar", progress=quiet)
    context = open_context(load_settings(tmp_path / "new"))
    yield SimpleNamespace(before=old.context, context=context, ceremony=old.ceremony, report=report)
    context.close()


def rows(context: Context, model: type[Any], *leaving_out: str) -> list[dict[str, Any]]:
    with context.database.session(read_only=True) as session:
        found = [row.model_dump(exclude=set(leaving_out)) for row in session.exec(select(model)).all()]
    return sorted(found, key=repr)


def test_all_that_is_not_a_version_comes_back_as_it_was(restored: SimpleNamespace) -> None:
    for model in (StoredMessage, AuditEntry, Federation, Round, RoundClient):
        assert rows(restored.context, model) == rows(restored.before, model) != []
    kept = ("assignment", "assignment_version")
    assert rows(restored.context, Device, *kept) == rows(restored.before, Device, *kept)
    old, new = restored.before.settings.state, restored.context.settings.state
    for name in (
        "online.json",
        "broker/acl",
        "broker/server.key",
        *(f"keys/{p.name}" for p in (old / "keys").iterdir()),
    ):
        if (old / name).exists():
            assert (new / name).read_bytes() == (old / name).read_bytes()
    assert all(path.stat().st_mode & 0o077 == 0 for path in (new / "keys").iterdir())
    blobs = {p.name: p.read_bytes() for p in (old / "blobs").glob("??/*")}
    assert {p.name: p.read_bytes() for p in (new / "blobs").glob("??/*")} == blobs != {}
    uploads = UploadStore(new / "uploads")
    assert uploads.path("fed-1-r1", "cam-1").read_bytes() == UPDATE
    assert uploads.path("fed-1-r1", "cam-2").read_bytes() == UPDATE[: 128 * 1024]
    assert not (new / ".restoring").exists()


def test_an_enrolment_file_that_waited_is_good_no_more(restored: SimpleNamespace) -> None:
    """It may have been used since the backup, and whoever finds it would be that device again."""
    assert [row["id"] for row in rows(restored.before, Enrolment)] == ["used", "waiting"]
    assert [row["id"] for row in rows(restored.context, Enrolment)] == ["used"]


def test_devices_see_no_rollback(restored: SimpleNamespace) -> None:
    def versions(context: Context) -> dict[str, int]:
        with context.database.session(read_only=True) as session:
            return metadata.versions(session)

    before, after = versions(restored.before), versions(restored.context)
    for role in ("snapshot", "timestamp"):
        assert after[role] == before[role] + LEAP
    assert {r: v for r, v in after.items() if r not in ("snapshot", "timestamp")} == {
        r: v for r, v in before.items() if r not in ("snapshot", "timestamp")
    }
    with restored.context.database.session(read_only=True) as session:
        stamp = session.exec(select(Outgoing).where(Outgoing.topic == "ew/1/meta/timestamp.json")).one()
        assert stamp.payload is not None
        assert Metadata.from_bytes(stamp.payload).signed.version == after["timestamp"]
        for device_id in ("cam-1", "cam-2"):
            row = session.exec(select(Outgoing).where(Outgoing.topic == f"ew/1/dev/{device_id}/assignment")).one()
            assert row.payload is not None
            accepted = verify_assignment(
                row.payload,
                restored.context.repository.current(session).targets.signed,
                device_id=device_id,
                channel="lab",
                now=datetime.now(UTC),
                accepted=Accepted(3 + LEAP // 2),  # what a device may have taken after the backup
            )
            assert accepted.version == 3 + LEAP + 1
            assert [file.custom.version for file in accepted.bundles] == [1]
    assert restored.report.assignments == 2


def test_the_broker_is_filled_anew(restored: SimpleNamespace) -> None:
    with restored.context.database.session(read_only=True) as session:
        assert all(row.mark is None for row in session.exec(select(Outgoing)).all())
        state = session.exec(select(BrokerState)).one()
    assert state.mark == 0
    assert state.instance not in [row["instance"] for row in rows(restored.before, BrokerState)]


def test_a_restored_server_goes_on(restored: SimpleNamespace, kit: SimpleNamespace) -> None:
    context = restored.context
    kit.publish(context, restored.ceremony, kit.make_bundle(version=2))
    with context.database.session() as session:
        audit.record(session, "test", "more", "x")
        device = session.get(Device, "cam-1")
        assert device is not None
        assert assignments.assign(session, context, device, [], "none", 60).version == 3 + LEAP + 2


def test_a_backup_is_one_moment_while_others_write(
    old: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written after the first table was read is in no table of the archive."""
    from edgewise_server.backup import create

    dump, seen = create.dump, []

    def writing(*arguments: Any) -> Any:
        entry = dump(*arguments)
        with old.context.database.session() as session:
            audit.record(session, "test", "during", entry.name)
        seen.append(entry.name)
        return entry

    monkeypatch.setattr(create, "dump", writing)
    backup(old.context, tmp_path / "b.tar")
    assert seen.index("audit") > 0
    with ArchiveReader(tmp_path / "b.tar") as archive:
        assert b"during" not in b"".join(archive.pieces("tables/audit.jsonl"))


def test_without_keys_no_private_key_leaves_the_server(old: SimpleNamespace, tmp_path: Path) -> None:
    (old.context.settings.state / "admin.token").write_text("ew_secret\n")
    backup(old.context, tmp_path / "b.tar", with_keys=False)
    data = (tmp_path / "b.tar").read_bytes()
    assert b"PRIVATE KEY" not in data and b"ew_secret" not in data
    with ArchiveReader(tmp_path / "b.tar") as archive:
        names = {entry.name for entry in archive.manifest.files}
    assert "state/broker/acl" in names and not any(name.startswith("state/keys/") for name in names)


def test_what_is_there_is_never_replaced(old: SimpleNamespace, tmp_path: Path) -> None:
    backup(old.context, tmp_path / "b.tar")
    before = sorted(p.name for p in old.context.settings.state.iterdir())
    with pytest.raises(NotEmptyError, match="not empty"):
        restore_backup(old.context.settings.state, tmp_path / "b.tar", progress=quiet)
    assert sorted(p.name for p in old.context.settings.state.iterdir()) == before
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "server.toml").write_text(f'database_url = "{old.context.settings.url}"\n')
    with pytest.raises(NotEmptyError, match="database has tables"):
        restore_backup(tmp_path / "new", tmp_path / "b.tar", progress=quiet)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["server.toml"]
    (tmp_path / "half" / ".restoring").mkdir(parents=True)
    with pytest.raises(NotEmptyError, match="interrupted"):
        restore_backup(tmp_path / "half", tmp_path / "b.tar", progress=quiet)


def test_a_damaged_archive_leaves_nothing_behind(old: SimpleNamespace, tmp_path: Path) -> None:
    digest = backup(old.context, tmp_path / "b.tar")
    with pytest.raises(ArchiveError, match="not that backup"):
        restore_backup(tmp_path / "new", tmp_path / "b.tar", manifest_sha256="0" * 64, progress=quiet)
    data = bytearray((tmp_path / "b.tar").read_bytes())
    data[data.index(UPDATE[:256])] ^= 1
    (tmp_path / "b.tar").write_bytes(data)
    with pytest.raises(ArchiveError, match="damaged"):
        restore_backup(tmp_path / "new", tmp_path / "b.tar", manifest_sha256=digest, progress=quiet)
    assert not (tmp_path / "new").exists()


def test_a_blob_that_is_missing_or_damaged_on_the_disk_is_told_when_it_still_can_be_mended(
    old: SimpleNamespace, tmp_path: Path
) -> None:
    blob = max((old.context.settings.state / "blobs").glob("??/*"), key=lambda path: path.stat().st_size)
    data = blob.read_bytes()
    blob.write_bytes(b"!" + data[1:])
    with pytest.raises(BackupError, match=blob.name):
        backup(old.context, tmp_path / "b.tar")
    blob.unlink()
    with pytest.raises(BackupError, match=blob.name):
        backup(old.context, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()
    blob.write_bytes(data)
    backup(old.context, tmp_path / "b.tar")


def test_one_backup_at_a_time(old: SimpleNamespace, tmp_path: Path) -> None:
    with old.context.database.session() as session:
        leases.hold(session, BACKUP_LEASE, "another-host:1:x", datetime.now(UTC).timestamp(), 60)
    with pytest.raises(BackupError, match="another backup"):
        backup(old.context, tmp_path / "b.tar")


def test_a_newer_schema_is_refused(old: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise_server.backup import create

    class Newer:
        @staticmethod
        def configure(_: Any) -> SimpleNamespace:
            return SimpleNamespace(get_current_revision=lambda: "9999")

    monkeypatch.setattr(create, "MigrationContext", Newer)
    backup(old.context, tmp_path / "b.tar")
    with pytest.raises(NewerArchiveError, match="9999"):
        restore_backup(tmp_path / "new", tmp_path / "b.tar", progress=quiet)
    assert not (tmp_path / "new").exists()


def test_an_upload_whose_bytes_are_gone_is_given_up(old: SimpleNamespace, tmp_path: Path) -> None:
    shutil.rmtree(old.context.settings.state / "uploads")
    made = create_backup(old.context.settings, tmp_path / "b.tar", with_keys=True, progress=quiet)
    assert made.left_out == 2
    state = tmp_path / "new"
    restore_backup(state, tmp_path / "b.tar", progress=quiet)
    context = open_context(load_settings(state))
    found = rows(context, RoundClient)
    context.close()
    assert {(row["state"], row["error"].partition(":")[0]) for row in found} == {("refused", "update-lost")}
