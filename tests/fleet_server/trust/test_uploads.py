"""Danger: metadata that nobody may sign, or bundles that are not what is signed, enter the registry."""

from __future__ import annotations

import hashlib
import json

import pytest
from edgewise_server.errors import (
    AttestationError,
    DelegationError,
    ExpiredError,
    LineageError,
    MissingBlobError,
    OnlineKeyError,
    TargetError,
    UnsignedError,
    VersionError,
)
from edgewise_server.services import attestations, blobs, metadata, registry
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Targets


def upload(context, role, data, kit):
    return context.repository.upload(role, data, now=kit.NOW, actor="test")


def store(context, bundle, *signers):
    """Upload a bundle's blob, and attestations by some signers."""
    with context.database.session() as session:
        blobs.add(session, context.blobs, bundle.data)
        for signer in signers:
            trusted = context.repository.current(session)
            attestations.submit(session, context.blobs, trusted, bundle.file.sha256, bundle.envelope(signer))


def test_a_signed_attested_bundle_enters_the_registry(trusted_context, ceremony, kit):
    bundle = kit.make_bundle()
    store(trusted_context, bundle, ceremony.keys.targets[0])
    published = upload(trusted_context, "targets", ceremony.next_targets(bundle.file), kit)
    assert published.added == [bundle.file.path]
    assert published.versions["snapshot"] == 2
    assert kit.outgoing_topics(trusted_context)[-3:] == [
        "meta/2.targets.json", "meta/2.snapshot.json", "meta/timestamp.json",
    ]  # fmt: skip
    with trusted_context.database.session(read_only=True) as session:
        assert registry.signed_file(session, bundle.file.path) == bundle.file
        assert [row.profile for row in registry.bundles_of(session, "digits", 1)] == ["raspberry-pi-4-64"]


def test_the_current_bytes_again_change_nothing(trusted_context, ceremony, kit):
    data = ceremony.next_targets()
    first = upload(trusted_context, "targets", data, kit)
    again = upload(trusted_context, "targets", data, kit)
    assert (first.changed, again.changed) == (True, False)
    assert again.versions == first.versions


def test_a_removed_target_is_no_longer_trusted(trusted_context, ceremony, kit):
    bundle = kit.make_bundle()
    kit.publish(trusted_context, ceremony, bundle)
    ceremony.targets.signed.targets.clear()
    published = upload(trusted_context, "targets", ceremony.next_targets(), kit)
    assert published.removed == [bundle.file.path]
    with trusted_context.database.session(read_only=True) as session:
        assert registry.signed_file(session, bundle.file.path) is None


@pytest.mark.parametrize("version", [1, 2, 4])
def test_only_the_next_version_is_accepted(trusted_context, ceremony, kit, version):
    upload(trusted_context, "targets", ceremony.next_targets(), kit)
    ceremony.targets.signed.version = version
    ceremony.targets.signed.expires = kit.expiring(30)
    with pytest.raises(VersionError):
        upload(trusted_context, "targets", ceremony.sign_targets(), kit)


def test_metadata_of_strangers_tampered_or_expired_ones_are_refused(trusted_context, ceremony, kit):
    good = ceremony.next_targets()
    with pytest.raises(UnsignedError):
        upload(trusted_context, "targets", good.replace(b'"version":2', b'"version":2,"x":1'), kit)
    ceremony.targets.sign(CryptoSigner.generate_ed25519())
    with pytest.raises(UnsignedError):
        upload(trusted_context, "targets", kit.to_bytes(ceremony.targets), kit)
    ceremony.targets.signed.expires = kit.expiring(-1)
    with pytest.raises(ExpiredError):
        upload(trusted_context, "targets", ceremony.sign_targets(), kit)
    with trusted_context.database.session(read_only=True) as session:
        assert metadata.versions(session)["targets"] == 1


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"length": 17}, TargetError),
        ({"sha256": "0" * 64}, MissingBlobError),
        ({"chunk_index": "0" * 64}, TargetError),
        ({"profile": "raspberry-pi-5", "path": "lab/digits/raspberry-pi-5/1.ewb"}, TargetError),
        ({"version": 2, "path": "lab/digits/raspberry-pi-4-64/2.ewb"}, TargetError),
        ({"compatible": ("everything",)}, TargetError),
        ({"lineage": {"run": "another"}}, TargetError),
        ({"path": "lab/digits/raspberry-pi-5/1.ewb"}, TargetError),
        ({"path": "rounds/lab/digits/1.ewb"}, TargetError),
        ({"path": "lab/../digits/raspberry-pi-4-64/1.ewb"}, TargetError),
        ({"kind": "weights"}, TargetError),
        ({"kind": "training", "path": "rounds/lab/digits/1.ewb"}, TargetError),
    ],
)
def test_a_target_that_differs_from_its_blob_is_refused(trusted_context, ceremony, kit, values, error):
    bundle = kit.make_bundle()
    store(trusted_context, bundle, ceremony.keys.targets[0])
    with pytest.raises(error):
        upload(trusted_context, "targets", ceremony.next_targets(kit.changed(bundle.file, **values)), kit)


def test_a_damaged_bundle_is_refused_even_when_signed(trusted_context, ceremony, kit):
    bundle = kit.make_bundle()
    spoiled = bundle.data.replace(bundle.provenance[:40], b"x" * 40)
    assert spoiled != bundle.data
    with trusted_context.database.session() as session:
        blob = blobs.add(session, trusted_context.blobs, spoiled)
        index = blob.chunk_index
    file = kit.changed(bundle.file, sha256=hashlib.sha256(spoiled).hexdigest(), chunk_index=index)
    with pytest.raises(TargetError, match="not acceptable"):
        upload(trusted_context, "targets", ceremony.next_targets(file), kit)


def test_a_bundle_that_nobody_of_the_signing_role_attests_is_refused(trusted_context, ceremony, kit):
    bundle = kit.make_bundle()
    store(trusted_context, bundle)
    with pytest.raises(LineageError, match="attests"):
        upload(trusted_context, "targets", ceremony.next_targets(bundle.file), kit)
    # the worker's word does not stand for the release engineers'
    store(trusted_context, bundle, ceremony.keys.delegated["auto/lab"])
    with pytest.raises(LineageError, match="targets"):
        upload(trusted_context, "targets", ceremony.sign_targets(), kit)
    store(trusted_context, bundle, ceremony.keys.targets[1])
    assert upload(trusted_context, "targets", ceremony.sign_targets(), kit).added == [bundle.file.path]


def statement_about(digest: str) -> bytes:
    subject = [{"name": "model.onnx", "digest": {"sha256": digest}}]
    return json.dumps({"_type": "https://in-toto.io/Statement/v1", "subject": subject, "predicate": {}}).encode()


@pytest.mark.parametrize(
    "provenance", [b"{}", b"not json", b"[]", statement_about("0" * 64), b'{"_type":"https://in-toto.io/Statement/v1"}']
)
def test_a_provenance_that_is_not_about_the_model_is_refused(trusted_context, ceremony, kit, provenance):
    bundle = kit.make_bundle(provenance=provenance)
    with pytest.raises(LineageError):
        store(trusted_context, bundle, ceremony.keys.targets[0])
    store(trusted_context, bundle)
    with pytest.raises(LineageError):
        upload(trusted_context, "targets", ceremony.next_targets(bundle.file), kit)


def test_envelopes_of_strangers_and_over_other_payloads_are_refused(trusted_context, ceremony, kit):
    bundle = kit.make_bundle()
    good = bundle.envelope(ceremony.keys.targets[0])
    bad = [
        bundle.envelope(CryptoSigner.generate_ed25519()),
        bundle.envelope(ceremony.keys.targets[0], payload=b'{"other":1}'),
        {**good, "payloadType": "text/plain"},
        {**good, "signatures": []},
        {**good, "signatures": good["signatures"] * 2},
        {**good, "signatures": [{"keyid": good["signatures"][0]["keyid"], "sig": "AAAA"}]},
        {**good, "signatures": [{}]},
        {**good, "payload": 5},
        {},
    ]
    store(trusted_context, bundle)
    for envelope in bad:
        with trusted_context.database.session() as session, pytest.raises(AttestationError):
            trusted = trusted_context.repository.current(session)
            attestations.submit(session, trusted_context.blobs, trusted, bundle.file.sha256, envelope)


def test_a_path_never_stands_for_another_content(trusted_context, ceremony, kit):
    kit.publish(trusted_context, ceremony, kit.make_bundle(size=1000))
    other = kit.make_bundle(size=2000)
    store(trusted_context, other, ceremony.keys.targets[0])
    with pytest.raises(TargetError, match="new version"):
        upload(trusted_context, "targets", ceremony.next_targets(other.file), kit)


def test_the_worker_publishes_in_its_channel_and_nowhere_else(trusted_context, ceremony, kit):
    inside = kit.make_bundle(version=2)
    kit.publish(trusted_context, ceremony, inside, role="auto/lab")
    with trusted_context.database.session(read_only=True) as session:
        rows = registry.bundles_of(session, "digits", 2)
        assert [(row.role, row.channel) for row in rows] == [("auto/lab", "lab")]
    outside = kit.make_bundle(version=3, channel="production")
    store(trusted_context, outside, ceremony.keys.delegated["auto/lab"])
    with pytest.raises(DelegationError, match="outside"):
        upload(trusted_context, "auto/lab", ceremony.next_delegated("auto/lab", outside.file), kit)


def test_a_training_bundle_needs_the_rounds_role_and_no_attestation(trusted_context, ceremony, kit):
    training = kit.make_training_bundle()
    kit.publish(trusted_context, ceremony, training, role="rounds")
    with trusted_context.database.session(read_only=True) as session:
        assert registry.signed_file(session, "rounds/lab/digits/1.ewb") == training.file
        assert registry.all_versions(session) == []


def test_delegated_roles_cannot_be_signed_by_others_or_delegate_on(trusted_context, ceremony, kit):
    forged = ceremony.delegated["auto/lab"]
    forged.signed.version = 2
    forged.sign(ceremony.keys.delegated["rounds"])
    with pytest.raises(UnsignedError):
        upload(trusted_context, "auto/lab", kit.to_bytes(forged), kit)
    forged.signed.delegations = ceremony.targets.signed.delegations
    with pytest.raises(DelegationError, match="further"):
        upload(trusted_context, "auto/lab", ceremony.sign_delegated("auto/lab"), kit)
    for role in ("director", "auto/production", "snapshot", "nonsense"):
        stray = Metadata(Targets(version=1, expires=kit.expiring(1)))
        with pytest.raises((DelegationError, VersionError)):
            upload(trusted_context, role, kit.to_bytes(stray), kit)


def test_new_targets_cannot_take_the_director_away_from_this_server(trusted_context, ceremony, kit):
    ceremony.targets.signed.revoke_key(ceremony.online["director"].keyid, "director")
    ceremony.targets.signed.add_key(ceremony.keys.root[0].public_key, "director")
    with pytest.raises(OnlineKeyError):
        upload(trusted_context, "targets", ceremony.next_targets(), kit)


def test_a_rotated_worker_key_takes_its_old_bundles_out_until_it_signs_again(trusted_context, ceremony, kit):
    bundle = kit.make_bundle(version=2)
    kit.publish(trusted_context, ceremony, bundle, role="auto/lab")
    old = ceremony.keys.delegated["auto/lab"]
    ceremony.keys.delegated["auto/lab"] = CryptoSigner.generate_ed25519()
    ceremony.targets.signed.revoke_key(old.public_key.keyid, "auto/lab")
    ceremony.targets.signed.add_key(ceremony.keys.delegated["auto/lab"].public_key, "auto/lab")
    assert upload(trusted_context, "targets", ceremony.next_targets(), kit).removed == [bundle.file.path]
    # the role goes on at version 3: its number must not fall, or devices would refuse the snapshot
    assert upload(trusted_context, "auto/lab", ceremony.next_delegated("auto/lab"), kit).added == [bundle.file.path]


def test_root_rotation_needs_the_old_and_the_new_roots_signatures(trusted_context, ceremony, kit):
    new_signer = CryptoSigner.generate_ed25519()
    ceremony.root.signed.version = 2
    ceremony.root.signed.revoke_key(ceremony.keys.root[0].public_key.keyid, "root")
    ceremony.root.signed.add_key(new_signer.public_key, "root")
    # enough for the old root alone, then enough for the new root alone
    for signers in ((ceremony.keys.root[0], ceremony.keys.root[1]), (ceremony.keys.root[2], new_signer)):
        ceremony.root.signatures.clear()
        for signer in signers:
            ceremony.root.sign(signer, append=True)
        with pytest.raises(UnsignedError):
            upload(trusted_context, "root", kit.to_bytes(ceremony.root), kit)
    ceremony.root.sign(ceremony.keys.root[1], append=True)
    published = upload(trusted_context, "root", kit.to_bytes(ceremony.root), kit)
    assert published.versions["root"] == 2
    assert kit.outgoing_topics(trusted_context)[-1] == "meta/timestamp.json"


def test_a_new_root_must_leave_the_trusted_targets_verifiable(trusted_context, ceremony, kit):
    ceremony.root.signed.version = 2
    ceremony.root.signed.revoke_key(ceremony.keys.targets[0].public_key.keyid, "targets")
    with pytest.raises(UnsignedError, match="old and the new"):
        upload(trusted_context, "root", ceremony.sign_root(), kit)
    upload(trusted_context, "targets", ceremony.next_targets() and ceremony.sign_targets(signers=2), kit)
    assert upload(trusted_context, "root", ceremony.sign_root(), kit).versions["root"] == 2


def test_the_broker_keeps_only_the_newest_versions(trusted_context, ceremony, kit):
    for _ in range(6):
        upload(trusted_context, "targets", ceremony.next_targets(), kit)
    topics = kit.outgoing_topics(trusted_context)
    assert sorted(t for t in topics if "targets" in t) == [f"meta/{n}.targets.json" for n in (4, 5, 6, 7)]
    assert sorted(t for t in topics if "snapshot" in t) == [f"meta/{n}.snapshot.json" for n in (4, 5, 6, 7)]
    assert topics[-1] == "meta/timestamp.json"
