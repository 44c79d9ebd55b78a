"""Danger: a ceremony that signs less, or more, than the trust table says; keys that leak or get lost."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from edgewise_cli.keys import ceremony
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata


def test_the_ceremony_signs_root_by_three_and_delegates_by_path(keys: Path) -> None:
    made = json.loads((keys / "ceremony.json").read_text())
    root = Metadata.from_dict(made["root"])
    targets = Metadata.from_dict(made["targets"])
    assert root.signed.roles["root"].threshold == 2
    assert len(root.signed.roles["root"].keyids) == 3
    assert root.signed.consistent_snapshot
    assert 360 < (root.signed.expires - datetime.now(UTC)).days <= 365
    root.verify_delegate("root", root)
    root.verify_delegate("targets", targets)
    for role, document in made["delegated"].items():
        targets.verify_delegate(role, Metadata.from_dict(document))
    paths = {name: role.paths for name, role in targets.signed.delegations.roles.items()}
    assert paths == {"director": ["dev/*"], "rounds": ["rounds/*/*/*"], "offers": [], "auto/lab": ["lab/*/*/*"]}
    assert targets.signed.unrecognized_fields["edgewise"]["channels"] == {
        "lab": {"auto": True},
        "production": {"auto": False},
    }


def test_one_root_signature_is_not_enough(keys: Path) -> None:
    root = Metadata.from_dict(json.loads((keys / "ceremony.json").read_text())["root"])
    for keyid in list(root.signatures)[1:]:
        del root.signatures[keyid]
    with pytest.raises(UnsignedMetadataError):
        root.verify_delegate("root", root)


def test_private_keys_are_readable_by_their_owner_alone_and_parted(keys: Path) -> None:
    private = sorted(p.relative_to(keys).as_posix() for p in keys.rglob("*.pem"))
    assert private == [
        "offline/fleet-ca.pem",
        "offline/root-1.pem",
        "offline/root-2.pem",
        "offline/root-3.pem",
        "offline/targets-1.pem",
        "offline/targets-2.pem",
        "worker/auto-lab.pem",
        "worker/offers.pem",
        "worker/rounds.pem",
    ]
    assert {stat.S_IMODE((keys / p).stat().st_mode) for p in private} == {0o600}
    assert b"PRIVATE" not in (keys / "ceremony.json").read_bytes()


def test_the_intermediate_is_made_from_the_csr_but_not_to_its_wishes(keys: Path) -> None:
    made = json.loads((keys / "ceremony.json").read_text())
    root = x509.load_pem_x509_certificate(made["fleet_ca_pem"].encode())
    intermediate = x509.load_pem_x509_certificate(made["intermediate_pem"].encode())
    intermediate.verify_directly_issued_by(root)
    constraints = intermediate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    assert "asked for" not in intermediate.subject.rfc4514_string()


def test_keys_are_never_overwritten(keys: Path, edgewise: Callable[..., Any], tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in keys.rglob("*") if p.is_file()}
    again = edgewise("keys", "init", keys, "--online", tmp_path / "online.json", "--channel", "lab")
    assert again.status == 1
    assert {p: p.read_bytes() for p in keys.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("channel", ["rounds", "dev", "../x", "lab:maybe", ""])
def test_channels_that_would_break_the_delegations_are_refused(
    fleet: Any, edgewise: Callable[..., Any], tmp_path: Path, channel: str
) -> None:
    online = tmp_path / "online.json"
    online.write_text(json.dumps(fleet.online()))
    made = edgewise("keys", "init", tmp_path / "k", "--online", online, "--channel", channel)
    assert made.status == 2
    assert not (tmp_path / "k" / "offline").exists()


def test_a_damaged_csr_is_refused_and_blocks_no_second_try(
    fleet: Any, edgewise: Callable[..., Any], tmp_path: Path
) -> None:
    online = fleet.online()
    der = bytearray(x509.load_pem_x509_csr(online["intermediate_csr_pem"].encode()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    import base64

    body = base64.encodebytes(bytes(der)).decode()
    online["intermediate_csr_pem"] = f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"
    path = tmp_path / "online.json"
    path.write_text(json.dumps(online))
    assert edgewise("keys", "init", tmp_path / "k", "--online", path, "--channel", "lab").status == 5
    assert not (tmp_path / "k").exists()
    assert not list(tmp_path.rglob("*.pem")), "private keys of a failed ceremony were left behind"
    path.write_text(json.dumps(fleet.online()))
    assert edgewise("keys", "init", tmp_path / "k", "--online", path, "--channel", "lab").status == 0


def test_a_passphrase_protects_key_files(
    fleet: Any, edgewise: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    online = tmp_path / "online.json"
    online.write_text(json.dumps(fleet.online()))
    monkeypatch.setenv("EDGEWISE_KEY_PASSPHRASE", "correct horse")
    folder = tmp_path / "k"
    assert edgewise("keys", "init", folder, "--online", online, "--channel", "lab").status == 0
    pem = (folder / "offline" / "targets-1.pem").read_bytes()
    with pytest.raises(TypeError):
        load_pem_private_key(pem, None)
    sign = ("sign", bundle, "--channel", "lab", "--keys", folder, "--offline", "--out")
    assert edgewise(*sign, tmp_path / "r1").status == 0
    monkeypatch.setenv("EDGEWISE_KEY_PASSPHRASE", "wrong")
    assert edgewise(*sign, tmp_path / "r2").status == 2
    monkeypatch.delenv("EDGEWISE_KEY_PASSPHRASE")
    refused = edgewise(*sign, tmp_path / "r3")
    assert refused.status == 2
    assert "EDGEWISE_KEY_PASSPHRASE" in refused.err


def test_a_root_key_may_live_behind_a_signer_uri(fleet: Any, edgewise: Callable[..., Any], tmp_path: Path) -> None:
    elsewhere = CryptoSigner.generate_ed25519()
    (tmp_path / "hsm.pem").write_bytes(elsewhere.private_bytes)
    public = elsewhere._private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "hsm.pub").write_bytes(public)
    online = tmp_path / "online.json"
    online.write_text(json.dumps(fleet.online()))
    made = edgewise(
        *("keys", "init", tmp_path / "k", "--online", online, "--channel", "lab"),
        *("--root-signer", f"file2:{tmp_path / 'hsm.pem'}", "--root-public", tmp_path / "hsm.pub"),
    )
    assert made.status == 0, made.err
    assert not (tmp_path / "k" / "offline" / "root-1.pem").exists()
    root = Metadata.from_dict(json.loads((tmp_path / "k" / "ceremony.json").read_text())["root"])
    assert elsewhere.public_key.keyid in root.signed.roles["root"].keyids
    assert elsewhere.public_key.keyid in root.signatures


def test_root_rotation_is_followed_from_the_old_root(
    keys: Path, fleet: Any, edgewise: Callable[..., Any], tmp_path: Path
) -> None:
    rotated = edgewise("keys", "rotate-root", keys, "--replace", "root-2", "--json")
    assert rotated.status == 0, rotated.err
    assert rotated.document["version"] == 2
    assert edgewise("trust", "install", keys).status == 0
    assert fleet.versions["root"] == 2
    # A second machine that knows only the first root follows.
    (tmp_path / "other").mkdir()
    for name in ("keys.json", "root.json"):
        (tmp_path / "other" / name).write_bytes((keys / "offline" / name).read_bytes())
    fetched = edgewise("trust", "fetch", tmp_path / "other", "--json")
    assert fetched.status == 0, fetched.err
    assert fetched.document["roles"]["root"]["version"] == 2
    shown = edgewise("keys", "show", keys, "--json").document
    assert "root-2" not in {k["name"] for k in shown["keys"]}


def test_a_root_signed_by_too_few_old_keys_is_not_made(keys: Path, edgewise: Callable[..., Any]) -> None:
    for name in ("root-1.pem", "root-2.pem"):
        (keys / "offline" / name).unlink()
    refused = edgewise("keys", "rotate-root", keys)
    assert refused.status == 5
    assert "too few signatures" in refused.err


def test_a_channel_can_be_added_and_opt_in(
    keys: Path, fleet: Any, edgewise: Callable[..., Any], bundle_maker: Any
) -> None:
    added = edgewise("keys", "add-channel", keys, "canary:auto", "--json")
    assert added.status == 0, added.err
    fetched = edgewise("trust", "fetch", keys, "--json")
    assert set(fetched.document["roles"]) == {"root", "targets", "rounds", "auto/lab", "auto/canary"}
    assert fleet.versions["targets"] == 2
    assert edgewise("keys", "add-channel", keys, "canary:auto").status == 1
    left = edgewise("keys", "add-channel", keys, "canary")
    assert left.status == 0 and "offline keys only" in left.out
    fleet.versions["auto/canary"] = 7  # the worker has signed meanwhile; a first version would be refused
    again = edgewise("keys", "add-channel", keys, "canary:auto")
    assert again.status == 0, again.err
    assert fleet.versions["auto/canary"] == 7


def test_no_device_is_enrolled_for_good_into_a_mistyped_channel(
    keys: Path, fleet: Any, edgewise: Callable[..., Any], tmp_path: Path
) -> None:
    refused = edgewise("device", "enrol-file", "--channel", "lba", "--keys", keys, "--out", tmp_path / "e.json")
    assert refused.status == 2
    assert "lab, production" in refused.err
    assert ("POST", "/enrolments") not in fleet.asked
    assert not (tmp_path / "e.json").exists()


def test_a_floor_is_signed_offline_and_published(
    keys: Path, fleet: Any, edgewise: Callable[..., Any], bundle_maker: Callable[..., Path], tmp_path: Path
) -> None:
    slip = edgewise("keys", "set-floor", keys, "digits", 3, "--json")
    assert slip.document["error"]["code"] == "floor-out-of-reach" and "none is signed" in slip.out
    raised = edgewise("keys", "set-floor", keys, "digits", 3, "--yes", "--json")
    assert raised.status == 0, raised.err
    assert (raised.document["floor"], raised.document["before"]) == (3, 0)
    found = Metadata.from_bytes(fleet.metadata[f"{fleet.versions['targets']}.targets.json"]).signed
    assert found.unrecognized_fields["edgewise"]["floors"] == {"digits": 3}
    assert found.unrecognized_fields["edgewise"]["channels"], "what else stands there stays"
    assert edgewise("keys", "set-floor", keys, "digits", 3).status == 1
    assert edgewise("keys", "set-floor", keys, "a/b", 3).status == 2
    signed = edgewise("sign", bundle_maker(version=5), "--channel", "lab", "--keys", keys, "--out", tmp_path / "r")
    assert signed.status == 0 and edgewise("publish", tmp_path / "r", "--keys", keys).status == 0
    assert "the newest that is signed is 5" in edgewise("keys", "set-floor", keys, "digits", 6).err
    assert edgewise("keys", "set-floor", keys, "digits", 5).status == 0
    lowered = edgewise("keys", "set-floor", keys, "digits", 4, "--json")
    assert lowered.document["error"]["code"] == "floor-lowered"
    for name in ("targets-1.pem", "targets-2.pem"):
        (keys / "offline" / name).unlink()
    assert edgewise("keys", "set-floor", keys, "digits", 4, "--yes").status == 2


def test_what_has_expired_can_be_signed_anew_but_an_expired_snapshot_says_nothing(
    fleet: Any, edgewise: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, online = tmp_path / "keys", tmp_path / "online.json"
    online.write_text(json.dumps(fleet.online()))
    with monkeypatch.context() as short:
        short.setattr(ceremony, "TARGETS_LIFE", timedelta(hours=-1))
        assert edgewise("keys", "init", folder, "--online", online, "--channel", "lab:auto").status == 0
    assert edgewise("trust", "install", folder).status == 0
    assert Metadata.from_bytes(fleet.metadata["1.targets.json"]).signed.is_expired(datetime.now(UTC))
    renewed = edgewise("keys", "set-floor", folder, "digits", 2, "--yes")
    assert renewed.status == 0, renewed.err
    assert not Metadata.from_bytes(fleet.metadata["2.targets.json"]).signed.is_expired(datetime.now(UTC))
    name = f"{fleet.generation}.snapshot.json"
    snapshot = Metadata.from_bytes(fleet.metadata[name])
    snapshot.signed.expires -= timedelta(days=2)
    snapshot.sign(fleet.snapshot_signer)
    fleet.metadata[name] = snapshot.to_bytes()
    for kept in (folder / "offline" / "trusted").glob("snapshot*"):
        kept.unlink()
    held_back = edgewise("keys", "set-floor", folder, "digits", 3, "--yes")
    assert held_back.status == 5 and "snapshot" in held_back.err
