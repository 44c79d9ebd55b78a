"""Danger: signing on top of what a server made up, publishing what too few signed, or another file than was signed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgewise_protocol.manifest import Proof
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Targets
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface


class _Memory(FetcherInterface):
    def __init__(self, fleet: Any) -> None:
        self._fleet = fleet

    def _fetch(self, url: str) -> Any:
        from tuf.api.exceptions import DownloadHTTPError

        name = url.removeprefix("mem/")
        if name.startswith("blob/"):
            return iter((self._fleet.blobs[name.removeprefix("blob/").split(".")[0].split("/")[-1]],))
        if name not in self._fleet.metadata:
            raise DownloadHTTPError("absent", 404)
        return iter((self._fleet.metadata[name],))


def _publish(edgewise: Callable[..., Any], bundle: Path, keys: Path, out: Path, channel: str = "lab") -> Any:
    signed = edgewise("sign", bundle, "--channel", channel, "--keys", keys, "--out", out)
    assert signed.status == 0, signed.err
    return edgewise("publish", out, "--keys", keys, "--json")


def test_what_was_published_verifies_with_python_tufs_own_client(
    keys: Path, fleet: Any, edgewise: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    published = _publish(edgewise, bundle, keys, tmp_path / "r")
    assert published.status == 0, published.out
    assert published.document["changed"]
    folder = tmp_path / "client"
    folder.mkdir()
    updater = Updater(
        metadata_dir=str(folder),
        metadata_base_url="mem/",
        target_dir=str(folder),
        target_base_url="mem/blob/",
        fetcher=_Memory(fleet),
        bootstrap=(keys / "offline" / "root.json").read_bytes(),
    )
    info = updater.get_targetinfo("lab/digits/x86-64/1.ewb")
    assert info is not None
    updater.config.prefix_targets_with_hash = False
    assert info.custom["edgewise"]["model"] == "digits"
    assert info.custom["edgewise"]["compatible"] == ["x86-64"]
    assert fleet.blobs[info.hashes["sha256"]] == bundle.read_bytes()
    assert updater.get_targetinfo("production/digits/x86-64/1.ewb") is None


def test_the_attestation_is_the_bundles_statement_signed_by_a_release_key(
    keys: Path, fleet: Any, edgewise: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    assert _publish(edgewise, bundle, keys, tmp_path / "r").status == 0
    root = Metadata.from_bytes((keys / "offline" / "root.json").read_bytes()).signed
    public = [root.keys[k] for k in root.roles["targets"].keyids]
    (document,) = fleet.attestations.values()
    envelope = Envelope.from_dict(document)
    envelope.verify(public, 1)
    assert json.loads(envelope.payload)["subject"][0]["name"] == "model.onnx"


def test_publishing_twice_changes_nothing(
    keys: Path, fleet: Any, edgewise: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    assert _publish(edgewise, bundle, keys, tmp_path / "r").status == 0
    before = dict(fleet.versions)
    again = edgewise("publish", tmp_path / "r", "--keys", keys, "--json")
    assert again.status == 0
    assert again.document["changed"] is False
    assert fleet.versions == before


def _two_signers(fleet: Any, edgewise: Callable[..., Any], tmp_path: Path) -> tuple[Path, Path]:
    """Key folders of two release engineers, who must both sign."""
    online = tmp_path / "online2.json"
    online.write_text(json.dumps(fleet.online()))
    keys = tmp_path / "two"
    made = edgewise("keys", "init", keys, "--online", online, "--channel", "lab", "--targets-threshold", 2)
    assert made.status == 0, made.err
    assert edgewise("trust", "install", keys).status == 0
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(keys / "offline", first)
    shutil.copytree(keys / "offline", second)
    for name in ("root-1", "root-2", "root-3", "fleet-ca"):
        (first / f"{name}.pem").unlink()
        (second / f"{name}.pem").unlink()
    (first / "targets-2.pem").unlink()
    (second / "targets-1.pem").unlink()
    return first, second


def test_a_threshold_of_two_needs_two_signers(
    fleet: Any, edgewise: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    first, second = _two_signers(fleet, edgewise, tmp_path)
    out = tmp_path / "r"
    signed = edgewise("sign", bundle, "--channel", "lab", "--keys", first, "--out", out, "--json")
    assert signed.document["roles"]["targets"] == {"version": 2, "have": 1, "threshold": 2}
    early = edgewise("publish", out, "--keys", first, "--json")
    assert early.status == 1
    assert early.document["error"]["code"] == "too-few-signatures"
    assert fleet.versions["targets"] == 1
    assert not fleet.blobs
    again = edgewise("sign", out, "--keys", first, "--json")
    assert (again.document["added"], again.document["roles"]["targets"]["have"]) == (0, 1)
    both = edgewise("sign", out, "--keys", second, "--json")
    assert (both.document["added"], both.document["roles"]["targets"]["have"]) == (1, 2)
    assert edgewise("publish", out, "--keys", second).status == 0
    assert fleet.versions["targets"] == 2
    (envelope,) = fleet.attestations.values()
    assert len(envelope["signatures"]) == 2


def test_a_version_means_the_same_bytes_for_good(
    keys: Path, edgewise: Callable[..., Any], bundle_maker: Any, tmp_path: Path
) -> None:
    assert _publish(edgewise, bundle_maker(), keys, tmp_path / "r").status == 0
    other = bundle_maker(body=b"other")
    refused = edgewise("sign", other, "--channel", "lab", "--keys", keys, "--out", tmp_path / "r2", "--json")
    assert refused.status == 1
    assert refused.document["error"]["code"] == "already-signed"
    assert not (tmp_path / "r2").exists()


def test_a_release_that_was_overtaken_must_be_signed_again(
    keys: Path, edgewise: Callable[..., Any], bundle_maker: Any, tmp_path: Path
) -> None:
    late = edgewise("sign", bundle_maker(version=1), "--channel", "lab", "--keys", keys, "--out", tmp_path / "late")
    assert late.status == 0
    assert _publish(edgewise, bundle_maker(version=2), keys, tmp_path / "r").status == 0
    refused = edgewise("publish", tmp_path / "late", "--keys", keys, "--json")
    assert (refused.status, refused.document["error"]["code"]) == (1, "outdated-release")


def test_what_was_not_run_on_its_board_is_warned_of_and_refused_on_request(
    keys: Path, edgewise: Callable[..., Any], bundle_maker: Callable[..., Path], tmp_path: Path
) -> None:
    tried = bundle_maker(version=1, proofs=(Proof(machine="x86_64"),))
    untried = bundle_maker(version=2)
    sign = ("sign", "--channel", "lab", "--keys", keys)
    refused = edgewise(*sign, tried, untried, "--require-proof", "--out", tmp_path / "no", "--json")
    assert (refused.status, refused.document["error"]["code"]) == (1, "proof-missing")
    assert untried.name in refused.document["error"]["message"]
    assert tried.name not in refused.document["error"]["message"]
    assert not (tmp_path / "no").exists()
    warned = edgewise(*sign, tried, untried, "--out", tmp_path / "both")
    assert warned.status == 0 and "WARNING: lab/digits/x86-64/2.ewb was not run" in warned.out + warned.err
    assert "WARNING: lab/digits/x86-64/1.ewb" not in warned.out + warned.err
    told = edgewise(*sign, tried, untried, "--out", tmp_path / "told", "--json")
    assert told.document["unproven"] == ["lab/digits/x86-64/2.ewb"]
    cosigned = edgewise("sign", tmp_path / "told", "--keys", keys, "--require-proof", "--json")
    assert (cosigned.status, cosigned.document["error"]["code"]) == (1, "proof-missing")
    elsewhere = bundle_maker(version=3, machine="aarch64", proofs=(Proof(machine="x86_64"),))
    refused = edgewise(*sign, elsewhere, "--require-proof", "--out", tmp_path / "no", "--json")
    assert refused.document["error"]["code"] == "proof-missing", "run on another instruction set"
    quiet = edgewise(*sign, tried, "--require-proof", "--out", tmp_path / "one")
    assert quiet.status == 0 and "WARNING" not in quiet.out + quiet.err


@pytest.mark.parametrize("victim", ["timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_tampered_server_metadata_are_refused(
    keys: Path, fleet: Any, edgewise: Callable[..., Any], bundle: Path, tmp_path: Path, victim: str
) -> None:
    shutil.rmtree(keys / "offline" / "trusted")
    latest = {"1.snapshot.json": f"{fleet.generation}.snapshot.json"}.get(victim, victim)

    def tamper(name: str, data: bytes) -> bytes:
        if name != latest:
            return data
        document = json.loads(data)
        document["signed"]["expires"] = "2099-01-01T00:00:00Z"
        return json.dumps(document).encode()

    fleet.tamper = tamper
    refused = edgewise("sign", bundle, "--channel", "lab", "--keys", keys, "--out", tmp_path / "r", "--json")
    assert refused.status == 5, refused.out
    assert "does not verify from your root" in refused.document["error"]["message"]
    assert not (tmp_path / "r").exists()


def test_a_server_with_its_own_root_is_refused(
    keys: Path, fleet: Any, edgewise: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    """The server presents targets signed by a key that only it calls a release key."""
    shutil.rmtree(keys / "offline" / "trusted")
    forged: Metadata[Targets] = Metadata.from_bytes(fleet.metadata["1.targets.json"])
    forged.signed.version = 2
    forged.sign(CryptoSigner.generate_ed25519())
    fleet.put_role("targets", forged.to_bytes())
    refused = edgewise("sign", bundle, "--channel", "lab", "--keys", keys, "--out", tmp_path / "r")
    assert refused.status == 5


def test_a_server_that_goes_back_is_noticed(
    keys: Path, fleet: Any, edgewise: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    old = dict(fleet.metadata)
    assert _publish(edgewise, bundle, keys, tmp_path / "r").status == 0
    fleet.metadata = old
    assert edgewise("trust", "fetch", keys).status == 5


def test_a_bundle_swapped_after_signing_is_refused(
    keys: Path, fleet: Any, edgewise: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    assert edgewise("sign", bundle, "--channel", "lab", "--keys", keys, "--out", tmp_path / "r").status == 0
    (blob,) = (tmp_path / "r" / "blobs").iterdir()
    blob.unlink()
    blob.write_bytes(bundle.read_bytes()[:-1] + b"!")
    refused = edgewise("publish", tmp_path / "r", "--keys", keys)
    assert refused.status == 5
    assert not fleet.blobs


def test_a_damaged_bundle_is_not_signed(keys: Path, edgewise: Callable[..., Any], bundle: Path, tmp_path: Path) -> None:
    data = bytearray(bundle.read_bytes())
    data[data.index(b"golden.safetensors") + 40] ^= 0xFF
    bundle.write_bytes(bytes(data))
    refused = edgewise("sign", bundle, "--channel", "lab", "--keys", keys, "--out", tmp_path / "r")
    assert refused.status == 1


def test_a_channel_that_is_not_the_fleets_is_refused(
    keys: Path, edgewise: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    refused = edgewise("sign", bundle, "--channel", "moon", "--keys", keys, "--out", tmp_path / "r")
    assert refused.status == 1
    assert "moon" in refused.err


def test_signing_offline_asks_no_server(
    keys: Path, fleet: Any, edgewise: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    fleet.asked.clear()
    signed = edgewise("sign", bundle, "--channel", "lab", "--keys", keys, "--offline", "--out", tmp_path / "r")
    assert signed.status == 0, signed.err
    assert not fleet.asked
    assert edgewise("publish", tmp_path / "r", "--keys", keys).status == 0


def test_local_metadata_are_verified_too(
    keys: Path, edgewise: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    path = keys / "offline" / "trusted" / "targets.json"
    document = json.loads(path.read_text())
    document["signed"]["version"] = 7
    path.write_text(json.dumps(document))
    refused = edgewise("sign", bundle, "--channel", "lab", "--keys", keys, "--offline", "--out", tmp_path / "r")
    assert refused.status == 5
