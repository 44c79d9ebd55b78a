"""Danger: online signatures expire while nobody looks, or are renewed so often that devices never rest."""

from __future__ import annotations

from datetime import timedelta

from edgewise_server.models.devices import Device
from edgewise_server.services import devices, identity, metadata
from tuf.api.metadata import Metadata


def versions(context):
    with context.database.session(read_only=True) as session:
        found = metadata.versions(session)
    return found.get("snapshot"), found.get("timestamp")


def test_nothing_is_signed_before_the_ceremony(context, kit):
    assert not context.repository.renew(kit.NOW)
    assert not context.refresh_crl()
    assert versions(context) == (None, None)


def test_each_is_renewed_at_half_of_its_life_and_not_before(trusted_context, kit):
    renew = trusted_context.repository.renew
    assert not renew(kit.NOW + timedelta(hours=11))
    assert renew(kit.NOW + timedelta(hours=13))
    assert versions(trusted_context) == (1, 2)
    assert not renew(kit.NOW + timedelta(hours=14))
    assert renew(kit.NOW + timedelta(days=4))
    assert versions(trusted_context) == (2, 3)
    assert kit.outgoing_topics(trusted_context)[-1] == "meta/timestamp.json"


def test_a_renewed_timestamp_names_the_snapshot_and_is_the_only_one_kept(trusted_context, kit):
    trusted_context.repository.renew(kit.NOW + timedelta(days=5))
    with trusted_context.database.session(read_only=True) as session:
        root = trusted_context.repository.current(session).root.signed
        row = metadata.read(session, "timestamp.json")
        snapshot = metadata.read(session, "snapshot.json")
    timestamp = Metadata.from_bytes(row.payload)
    root.verify_delegate("timestamp", timestamp.signed_bytes, timestamp.signatures)
    assert timestamp.signed.snapshot_meta.version == snapshot.version == 2
    timestamp.signed.snapshot_meta.verify_length_and_hashes(snapshot.payload)
    assert not timestamp.signed.is_expired(kit.NOW + timedelta(days=5, hours=20))


def test_old_snapshots_are_dropped_and_cleared_from_the_broker(trusted_context, kit):
    for days in (4, 8, 12, 16, 20, 24):
        assert trusted_context.repository.renew(kit.NOW + timedelta(days=days))
    topics = [t for t in kit.outgoing_topics(trusted_context) if "snapshot" in t]
    assert topics == [f"meta/{n}.snapshot.json" for n in (4, 5, 6, 7)]


def test_the_revocation_list_is_renewed_and_names_revoked_devices(trusted_context, kit, tmp_path):
    from cryptography import x509

    assert trusted_context.refresh_crl()
    assert not trusted_context.refresh_crl()
    with trusted_context.database.session() as session:
        session.add(
            Device(id="cam-1", channel="lab", certificate_serial="abc", certificate_not_after=kit.expiring(300))
        )
        session.flush()
        devices.revoke(session, "cam-1")
    assert trusted_context.refresh_crl(force=True)
    pem = (tmp_path / "state" / "crl.pem").read_bytes()
    crl = x509.load_pem_x509_crl(pem)
    assert [entry.serial_number for entry in crl] == [0xABC]
    with trusted_context.database.session(read_only=True) as session:
        ca = identity.fleet_ca(session)
        assert ca.crl_pem.encode() == pem
    assert crl.is_signature_valid(x509.load_pem_x509_certificate(ca.intermediate_pem.encode()).public_key())
