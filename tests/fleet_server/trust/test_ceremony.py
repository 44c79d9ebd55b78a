"""Danger: the server installs a trust in which it could sign releases itself, or which nobody signed."""

from __future__ import annotations

import pytest
from edgewise_server.errors import (
    CertificateError,
    ConflictError,
    DelegationError,
    ExpiredError,
    InvalidError,
    NoTrustError,
    OnlineKeyError,
    ServerError,
    UnsignedError,
)
from tuf.api.metadata import DelegatedRole, Delegations


def install(context, document, kit):
    return context.repository.install(document, now=kit.NOW, actor="test")


def test_a_good_ceremony_is_installed_once_and_publishes_timestamp_last(context, ceremony, kit):
    published = install(context, ceremony.document(), kit)
    assert published.changed
    assert published.versions == {
        "root": 1, "targets": 1, "rounds": 1, "auto/lab": 1, "snapshot": 1, "timestamp": 1,
    }  # fmt: skip
    topics = kit.outgoing_topics(context)
    assert topics[-1] == "meta/timestamp.json"
    assert set(topics) == {
        "meta/sentinel", "meta/1.root.json", "meta/1.targets.json", "meta/1.rounds.json",
        "meta/1.auto%2Flab.json", "meta/1.snapshot.json", "meta/timestamp.json",
    }  # fmt: skip


def test_the_same_ceremony_again_changes_nothing(context, ceremony, kit):
    document = ceremony.document()
    first = install(context, document, kit)
    again = install(context, document, kit)
    assert not again.changed
    assert again.versions == first.versions


def test_another_ceremony_is_refused_once_one_is_there(trusted_context, ceremony, kit):
    other = kit.Ceremony(trusted_context.keys.describe() | {"intermediate_csr_pem": ceremony.csr_pem})
    with pytest.raises(ConflictError, match="another trust"):
        install(trusted_context, other.document(), kit)


def test_metadata_may_be_given_as_text(context, ceremony, kit):
    document = ceremony.document()
    document["root"] = kit.to_bytes(ceremony.root).decode()
    assert install(context, document, kit).changed


def one_signature(c, kit):
    c.sign_root(signers=1)


def expired_root(c, kit):
    c.root.signed.expires = kit.expiring(-1)
    c.sign_root()


def expired_delegation(c, kit):
    c.delegated["auto/lab"].signed.expires = kit.expiring(-1)
    c.sign_delegated("auto/lab")


def inconsistent(c, kit):
    c.root.signed.consistent_snapshot = False
    c.sign_root()


def unsigned_targets(c, kit):
    c.targets.signatures.clear()


def changed_after_signing(c, kit):
    c.targets.signed.version = 7


def server_key_as_root(c, kit):
    c.root.signed.add_key(c.online["snapshot"], "root")
    c.sign_root()


def server_key_as_targets(c, kit):
    c.root.signed.add_key(c.online["director"], "targets")
    c.sign_root()


def foreign_snapshot_key(c, kit):
    c.root.signed.revoke_key(c.online["snapshot"].keyid, "snapshot")
    c.root.signed.add_key(c.keys.root[0].public_key, "snapshot")
    c.sign_root()


def two_timestamp_keys(c, kit):
    c.root.signed.add_key(c.keys.root[0].public_key, "timestamp")
    c.sign_root()


def foreign_director(c, kit):
    c.targets.signed.revoke_key(c.online["director"].keyid, "director")
    c.targets.signed.add_key(c.keys.root[0].public_key, "director")
    c.sign_targets()


def no_director(c, kit):
    del c.targets.signed.delegations.roles["director"]
    c.sign_targets()


def director_of_everything(c, kit):
    c.targets.signed.delegations.roles["director"].paths = ["*/*/*/*"]
    c.sign_targets()


def auto_of_another_channel(c, kit):
    c.targets.signed.delegations.roles["auto/lab"].paths = ["production/*/*/*"]
    c.sign_targets()


def terminating(c, kit):
    c.targets.signed.delegations.roles["auto/lab"].terminating = True
    c.sign_targets()


def server_key_in_auto(c, kit):
    c.targets.signed.add_key(c.online["timestamp"], "auto/lab")
    c.sign_targets()


def unknown_delegation(c, kit):
    key = c.keys.root[0].public_key
    old = c.targets.signed.delegations
    roles = {**old.roles, "marketing": DelegatedRole("marketing", [key.keyid], 1, False, paths=["lab/*/*/*"])}
    c.targets.signed.delegations = Delegations({**old.keys, key.keyid: key}, roles)
    c.sign_targets()


def one_key_for_two_roles(c, kit):
    """A signature does not name its role: an offer would be metadata of `rounds`."""
    c.keys.delegated["offers"] = c.keys.delegated["rounds"]
    c.targets = c._targets()
    c.sign_targets()


def offers_that_may_sign_for_paths(c, kit):
    c.targets.signed.delegations.roles["offers"].paths = ["lab/*/*/*"]
    c.sign_targets()


def metadata_of_the_offers_role(c, kit):
    c.delegated["offers"] = c.delegated["rounds"]
    c.sign_delegated("offers")


def role_without_metadata(c, kit):
    del c.delegated["rounds"]


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (one_signature, UnsignedError),
        (expired_root, ExpiredError),
        (expired_delegation, ExpiredError),
        (inconsistent, InvalidError),
        (unsigned_targets, UnsignedError),
        (changed_after_signing, UnsignedError),
        (server_key_as_root, OnlineKeyError),
        (server_key_as_targets, OnlineKeyError),
        (foreign_snapshot_key, OnlineKeyError),
        (two_timestamp_keys, OnlineKeyError),
        (foreign_director, OnlineKeyError),
        (no_director, DelegationError),
        (director_of_everything, DelegationError),
        (auto_of_another_channel, DelegationError),
        (terminating, DelegationError),
        (server_key_in_auto, OnlineKeyError),
        (unknown_delegation, DelegationError),
        (role_without_metadata, DelegationError),
        (one_key_for_two_roles, DelegationError),
        (offers_that_may_sign_for_paths, DelegationError),
        (metadata_of_the_offers_role, DelegationError),
    ],
)
def test_a_spoiled_ceremony_is_refused_and_nothing_is_kept(context, ceremony, kit, spoil, error):
    spoil(ceremony, kit)
    with pytest.raises(error):
        install(context, ceremony.document(), kit)
    assert kit.outgoing_topics(context) == []
    with context.database.session(read_only=True) as session, pytest.raises(NoTrustError):
        context.repository.current(session)


def test_an_intermediate_of_a_foreign_root_or_key_is_refused(context, ceremony, kit):
    document = ceremony.document()
    other = kit.Ceremony(context.keys.describe() | {"intermediate_csr_pem": ceremony.csr_pem})
    with pytest.raises(CertificateError, match="not signed by"):
        install(context, document | {"intermediate_pem": other.document()["intermediate_pem"]}, kit)
    with pytest.raises(CertificateError, match="another key"):
        install(context, document | {"intermediate_pem": document["fleet_ca_pem"]}, kit)


@pytest.mark.parametrize("field", ["root", "targets", "delegated", "fleet_ca_pem", "intermediate_pem"])
@pytest.mark.parametrize("value", [None, 7, "x", [], {}, {"signed": {}}])
def test_a_malformed_document_is_refused_with_a_domain_error(context, ceremony, kit, field, value):
    with pytest.raises(ServerError):
        install(context, ceremony.document() | {field: value}, kit)
