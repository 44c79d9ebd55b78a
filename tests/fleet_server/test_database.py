"""Danger: what holds on SQLite breaks on PostgreSQL: times, JSON, locks, migrations, one writer at a time.

Every test runs on SQLite, and on PostgreSQL where `EDGEWISE_TEST_POSTGRES` names a server
on which databases may be made, or where its programs are installed.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from edgewise_protocol.enrolment import EnrolRequest
from edgewise_protocol.facts import DeviceFacts
from edgewise_server.context import online_description
from edgewise_server.db import BUSY_TIMEOUT_S, Database, hold_lock
from edgewise_server.errors import EnrolmentError, SchemaNewerError
from edgewise_server.models.access import AuditEntry
from edgewise_server.models.devices import Device
from edgewise_server.schema import METADATA, upgrade
from edgewise_server.services import audit, devices, identity, metadata, registry
from sqlalchemy import inspect, text
from sqlalchemy.exc import OperationalError
from sqlmodel import select


@pytest.fixture
def url(both_databases, tmp_path):
    """URL of an empty database."""
    return both_databases(tmp_path)


@pytest.fixture
def opened(url, kit, tmp_path):
    """A server's context on the database, with its ceremony installed."""
    context = kit.make_state(tmp_path / "state", url)
    ceremony = kit.Ceremony(online_description(context.keys, context.authority))
    context.repository.install(ceremony.document(), now=kit.NOW, actor="test")
    yield context, ceremony
    context.close()


def test_migrations_make_exactly_the_tables_of_the_models(url):
    database = Database(url)
    upgrade(database)
    upgrade(database)
    with database.engine.connect() as connection:
        difference = compare_metadata(MigrationContext.configure(connection), METADATA)
    assert difference == []
    database.close()


def test_several_processes_may_migrate_at_once(url):
    imports = "from edgewise_server.db import Database; from edgewise_server.schema import upgrade"
    code = f"{imports}; upgrade(Database({url!r}))"
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    database = Database(url)
    assert "devices" in inspect(database.engine).get_table_names()
    database.close()


def test_a_database_of_a_newer_server_is_left_alone_and_says_so(url):
    database = Database(url)
    upgrade(database)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999_of_the_future'"))
    with pytest.raises(SchemaNewerError, match="install that version again"):
        upgrade(database)
    database.close()


def test_times_and_json_come_back_as_they_went_in(opened):
    context, _ = opened
    zone = timezone(timedelta(hours=2))
    at = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=zone)
    facts = {"compatible": ["a,b"], "engines": {"onnxruntime": "1.32.0"}, "text": "héé\n"}
    with context.database.session() as session:
        session.add(Device(id="cam-1", channel="lab", certificate_serial="1", certificate_not_after=at, facts=facts))
    with context.database.session(read_only=True) as session:
        device = devices.get(session, "cam-1")
    assert device.certificate_not_after == at
    assert device.certificate_not_after.tzinfo == UTC
    assert device.facts == facts
    assert device.reported is None
    with pytest.raises(Exception, match="zone"), context.database.session() as session:
        device = devices.get(session, "cam-1")
        device.certificate_not_after = at.replace(tzinfo=None)


def test_a_failed_transaction_leaves_nothing(opened):
    context, _ = opened
    with pytest.raises(RuntimeError), context.database.session() as session:
        audit.record(session, "x", "test", "x")
        session.flush()
        raise RuntimeError
    with context.database.session(read_only=True) as session:
        audit.record(session, "x", "test", "x")
        session.flush()
    with context.database.session(read_only=True) as session:
        assert not session.exec(select(AuditEntry).where(AuditEntry.action == "test")).all()


def test_a_lock_is_held_until_the_transaction_ends(opened):
    context, _ = opened
    order: list[str] = []
    held, may_end = threading.Event(), threading.Event()

    def first():
        with context.database.session() as session:
            hold_lock(session, "test")
            held.set()
            may_end.wait(10)
            order.append("first")

    def second():
        held.wait(10)
        with context.database.session() as session:
            may_end.set()
            hold_lock(session, "test")
            order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert order == ["first", "second"]


def test_many_writers_queue_and_none_is_lost(opened):
    context, _ = opened

    def write(number):
        with context.database.session() as session:
            # reads first, then writes: with a deferred BEGIN SQLite would fail here
            session.exec(select(AuditEntry).limit(1)).first()
            audit.record(session, "writer", "count", str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(64)))
    with context.database.session(read_only=True) as session:
        assert len(session.exec(select(AuditEntry).where(AuditEntry.action == "count")).all()) == 64


def test_publishing_assigning_and_deleting_work_alike(opened, kit):
    context, ceremony = opened
    bundle = kit.make_bundle()
    kit.publish(context, ceremony, bundle)
    with context.database.session() as session:
        assert metadata.versions(session)["targets"] == 2
        facts = DeviceFacts(machine="aarch64", compatible=("raspberry-pi-4-64",), engines={"onnxruntime": "1.32.0"})
        file = registry.bundle_for(session, "digits", 1, facts, channel="lab")
        assert file == bundle.file
        session.add(Device(id="cam-1", channel="lab", certificate_serial="1", certificate_not_after=kit.expiring(9)))
        session.flush()
        context.director.issue_assignment(session, "cam-1", (file,), "rollout-1", 60)
    assert kit.outgoing_topics(context)[-1] == "meta/timestamp.json"
    with context.database.session() as session:
        devices.delete(session, "cam-1")
    with context.database.session(read_only=True) as session:
        assert devices.find(session, "cam-1") is None
        assert session.connection().execute(text("SELECT count(*) FROM revoked_certificates")).scalar() == 1


def test_concurrent_assignments_never_share_a_version(opened):
    context, _ = opened
    with context.database.session() as session:
        session.add(Device(id="cam-1", channel="lab", certificate_serial="1", certificate_not_after=datetime.now(UTC)))

    def issue(_):
        with context.database.session() as session:
            context.director.issue_assignment(session, "cam-1", (), "none", 60)
            return devices.get(session, "cam-1").assignment_version

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(issue, range(16))) == list(range(1, 17))


def test_concurrent_enrolments_spend_a_token_once(opened):
    context, _ = opened
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    csr = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(
        ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()
    )
    with context.database.session() as session:
        _, file = identity.create_enrolment(
            session, context.settings, "{}", channel="lab", group_names=[], name="", actor="t", expires_in_s=60
        )
    request = EnrolRequest(
        token=file.token,
        csr_pem=csr.public_bytes(Encoding.PEM).decode(),
        facts=DeviceFacts(machine="aarch64", compatible=()),
    )

    def enrol(_):
        try:
            with context.database.session() as session:
                identity.enrol(session, context.authority, request, now=datetime.now(UTC), certificate_days=1)
        except EnrolmentError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(enrol, range(8))) == 1
    with context.database.session(read_only=True) as session:
        assert len(session.exec(select(Device)).all()) == 1


@pytest.mark.skipif(os.environ.get("EDGEWISE_TEST_DATABASE") == "postgresql", reason="about SQLite")
def test_the_state_folder_holds_the_sqlite_database_with_a_write_ahead_log(kit, tmp_path):
    context = kit.make_state(tmp_path / "state")
    with context.database.engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    assert Path(tmp_path / "state" / "server.db").is_file()
    context.close()


@pytest.mark.skipif(os.environ.get("EDGEWISE_TEST_DATABASE") == "postgresql", reason="about SQLite")
def test_a_fresh_file_that_another_process_begins_is_waited_for(tmp_path):
    """SQLite asks no busy handler where a connection changes the journal."""
    other = sqlite3.connect(tmp_path / "server.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, other.execute, ("COMMIT",))
    release.start()
    database = Database(f"sqlite:///{tmp_path / 'server.db'}")
    with database.engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    database.close()
    release.join()
    other.close()


@pytest.mark.skipif(os.environ.get("EDGEWISE_TEST_DATABASE") == "postgresql", reason="about SQLite")
def test_a_file_that_cannot_be_opened_is_told_at_once(tmp_path):
    with sqlite3.connect(tmp_path / "server.db") as made:
        made.execute("PRAGMA journal_mode=WAL")
    made.close()
    (tmp_path / "server.db-wal").mkdir()
    database = Database(f"sqlite:///{tmp_path / 'server.db'}")
    began = time.monotonic()
    with pytest.raises(OperationalError):
        database.engine.connect()
    assert time.monotonic() - began < BUSY_TIMEOUT_S / 2
    database.close()
