"""Danger: what the server publishes is not what a device verifies, or what it serves can be tampered with unseen.

The device's view is python-tuf's own client, over real HTTP.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from edgewise_protocol.assignment import Accepted, verify_assignment
from edgewise_protocol.targets import from_target_file
from edgewise_server.models.devices import Device
from tuf.api.exceptions import BadVersionNumberError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata
from tuf.ngclient import FetcherInterface, Updater


class HttpFetcher(FetcherInterface):
    """python-tuf's fetcher over an authenticated httpx client; `tamper` may change what arrives."""

    def __init__(self, client, tamper=None):
        super().__init__()
        self._client, self._tamper = client, tamper or (lambda name, data: data)
        self.asked = []

    def _fetch(self, url):
        answer = self._client.get(url)
        if answer.status_code != 200:
            raise DownloadHTTPError(answer.text, answer.status_code)
        self.asked.append(url.rsplit("/", 1)[-1])
        yield self._tamper(self.asked[-1], answer.content)


@pytest.fixture
def device(trusted_api, tmp_path, kit, ceremony):
    """A device that starts from the first root alone."""
    root = kit.to_bytes(ceremony.root)

    def make(tamper=None, folder="device"):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        fetcher = HttpFetcher(trusted_api.viewer, tamper)
        return Updater(str(place), f"{trusted_api.url}/metadata/", fetcher=fetcher, bootstrap=root), fetcher

    return SimpleNamespace(make=make)


def publish(api, ceremony, bundle, role="targets"):
    """Upload, attest and sign a bundle, over HTTP."""
    client = api.operator if role == "targets" else api.worker
    sha256 = bundle.file.sha256
    client.put(f"/blobs/{sha256}", content=bundle.data).raise_for_status()
    if bundle.provenance:
        envelope = bundle.envelope(ceremony.signer_of(role))
        client.post("/attestations", json={"bundle_sha256": sha256, "envelope": envelope}).raise_for_status()
    data = ceremony.next_targets(bundle.file) if role == "targets" else ceremony.next_delegated(role, bundle.file)
    answer = client.put(f"/metadata/{role if role == 'targets' else f'delegated/{role}'}", content=data)
    answer.raise_for_status()
    return answer.json()


def test_a_device_follows_the_chain_to_bundles_of_every_role(trusted_api, ceremony, kit, device):
    release, automatic, training = kit.make_bundle(), kit.make_bundle(version=2), kit.make_training_bundle()
    answer = publish(trusted_api, ceremony, release)
    assert answer == {
        "role": "targets", "version": 2, "snapshot": 2, "timestamp": 2, "added": [release.file.path], "removed": [],
    }  # fmt: skip
    publish(trusted_api, ceremony, automatic, "auto/lab")
    publish(trusted_api, ceremony, training, "rounds")
    updater, fetcher = device.make()
    for bundle in (release, automatic, training):
        info = updater.get_targetinfo(bundle.file.path)
        assert from_target_file(info) == bundle.file
        data = trusted_api.viewer.get(f"/blobs/{info.hashes['sha256']}").content
        info.verify_length_and_hashes(data)
    assert updater.get_targetinfo("lab/digits/raspberry-pi-4-64/9.ewb") is None
    assert fetcher.asked[:3] == ["timestamp.json", "4.snapshot.json", "2.targets.json"]
    assert "2.auto%2Flab.json" in fetcher.asked


def test_a_device_verifies_its_assignment_beside_the_updater(trusted_api, ceremony, kit, device):
    bundle = kit.make_bundle()
    publish(trusted_api, ceremony, bundle)
    context = trusted_api.context
    with context.database.session() as session:
        session.add(Device(id="cam-1", channel="lab", certificate_serial="1", certificate_not_after=datetime.now(UTC)))
        session.flush()
        data = context.director.issue_assignment(session, "cam-1", (bundle.file,), "rollout-1", 60)
    updater, _ = device.make()
    updater.refresh()
    trusted = Metadata.from_bytes(trusted_api.viewer.get("/metadata/targets.json").content).signed
    found = verify_assignment(
        data, trusted, device_id="cam-1", channel="lab", now=datetime.now(UTC), accepted=Accepted()
    )
    assert found.bundles == (bundle.file,)
    shown = trusted_api.viewer.get("/devices/cam-1").json()["assignment"]
    assert (shown["version"], shown["deployment"]) == (1, "rollout-1")
    assert shown["bundles"] == [
        {
            "model": "digits", "version": 1, "profile": "raspberry-pi-4-64",
            "path": bundle.file.path, "sha256": bundle.file.sha256,
        }
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json", "2.auto%2Flab.json"])
def test_any_changed_byte_is_noticed_by_the_device(trusted_api, ceremony, kit, device, name):
    publish(trusted_api, ceremony, kit.make_bundle())
    bundle = kit.make_bundle(version=2)
    publish(trusted_api, ceremony, bundle, "auto/lab")
    wanted = {"2.snapshot.json": "3.snapshot.json"}.get(name, name)

    def tamper(asked, data):
        return data.replace(b'"version":', b'"version": ') if asked == "nothing" else data.replace(
            b'"expires":"20', b'"expires":"21'
        ) if asked == wanted else data  # fmt: skip

    updater, fetcher = device.make(tamper)
    with pytest.raises(RepositoryError):
        updater.refresh()
        updater.get_targetinfo(bundle.file.path)
    assert wanted in fetcher.asked


def test_an_old_timestamp_is_a_rollback_to_the_device(trusted_api, ceremony, kit, device):
    old = trusted_api.viewer.get("/metadata/timestamp.json").content
    publish(trusted_api, ceremony, kit.make_bundle())
    updater, _ = device.make()
    updater.refresh()
    replaying, _ = device.make(lambda name, data: old if name == "timestamp.json" else data)
    with pytest.raises(BadVersionNumberError):
        replaying.refresh()


def test_a_device_survives_a_root_rotation(trusted_api, ceremony, kit, device):
    device.make()[0].refresh()
    ceremony.root.signed.version = 2
    ceremony.root.signed.expires = kit.expiring(300)
    trusted_api.operator.put("/metadata/root", content=ceremony.sign_root()).raise_for_status()
    updater, fetcher = device.make()
    updater.refresh()
    assert fetcher.asked[0] == "2.root.json"
    assert trusted_api.viewer.get("/trust").json()["roles"]["root"]["version"] == 2


def test_metadata_are_served_under_quoted_and_current_names(trusted_api, ceremony, kit):
    current = trusted_api.viewer.get("/metadata/auto%2Flab.json").content
    assert current == kit.to_bytes(ceremony.delegated["auto/lab"])
    assert trusted_api.worker.get("/metadata/1.auto%2Flab.json").content == current
    assert trusted_api.worker.get("/metadata/1.auto%252Flab.json").content == current
    for missing in ("9.targets.json", "1.nobody.json", "0.root.json", "targets", "..%2Fadmin.token", "1..json"):
        assert trusted_api.viewer.get(f"/metadata/{missing}").status_code in (404, 422), missing


def test_refusals_are_problem_documents_with_the_domains_code(trusted_api, ceremony, kit):
    bundle = kit.make_bundle()
    data = ceremony.next_targets(bundle.file)
    answer = trusted_api.operator.put("/metadata/targets", content=data)
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert (problem["code"], problem["type"]) == ("blob-missing", "urn:edgewise:problem:blob-missing")
    assert problem["status"] == 422 and bundle.file.sha256 in problem["detail"]
    assert problem["instance"] == "/api/v1/metadata/targets"
    trusted_api.operator.put(f"/blobs/{bundle.file.sha256}", content=bundle.data).raise_for_status()
    codes = {
        "lineage": trusted_api.operator.put("/metadata/targets", content=data),
        "invalid": trusted_api.operator.put("/metadata/targets", content=b"{}"),
        "trust-version": trusted_api.operator.put("/metadata/root", content=kit.to_bytes(ceremony.root) + b" "),
        "trust-delegation": trusted_api.worker.put(
            "/metadata/delegated/auto/x", content=kit.to_bytes(ceremony.delegated["rounds"])
        ),
        "not-found": trusted_api.worker.put("/metadata/delegated/root", content=b"{}"),
        "conflict": trusted_api.admin.put(
            "/trust", json=kit.Ceremony(trusted_api.viewer.get("/trust/online").json()).document()
        ),
    }
    assert {code: answer.json()["code"] for code, answer in codes.items()} == {code: code for code in codes}


def test_the_ceremony_needs_only_what_the_server_hands_out(api, kit):
    online = api.viewer.get("/trust/online").json()
    document = kit.Ceremony(online, ("lab", "canary")).document()
    first, again = api.admin.put("/trust", json=document), api.admin.put("/trust", json=document)
    assert first.json()["installed"] is True and again.json()["installed"] is False
    assert first.json()["roles"] == again.json()["roles"]
    status = api.viewer.get("/status").json()
    assert set(status["trust"]["roles"]) == {
        "root", "targets", "snapshot", "timestamp", "rounds", "auto/lab", "auto/canary",
    }  # fmt: skip
    assert status["broker"] == {"host": "127.0.0.1", "port": 18830, "tls": False}
    assert "PRIVATE" not in api.viewer.get("/trust/online").text


def test_before_the_ceremony_the_trust_is_missing(api, kit, ceremony):
    for answer in (
        api.viewer.get("/trust"),
        api.operator.put("/metadata/targets", content=kit.to_bytes(ceremony.targets)),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "trust-missing")
    assert api.viewer.get("/status").json()["trust"] == {"installed": False, "roles": {}}


def test_what_was_done_stands_in_the_audit_log_without_secrets(trusted_api, ceremony, kit):
    bundle = kit.make_bundle()
    publish(trusted_api, ceremony, bundle)
    made = trusted_api.admin.post("/tokens", json={"name": "ci", "role": "viewer"}).json()
    answer = trusted_api.operator.get("/audit")
    entries = [(e["actor"], e["action"]) for e in answer.json()["items"]]
    assert entries == [
        ("admin", "token.create"),
        ("operator", "metadata.upload"),
        ("operator", "attestation.add"),
        ("operator", "blob.add"),
        ("admin", "trust.install"),
    ]
    assert made["token"] not in answer.text
    assert hashlib.sha256(made["token"].encode()).hexdigest() not in answer.text


def test_signatures_that_only_people_can_renew_are_announced_in_time(api, ceremony, kit):
    ceremony.targets.signed.expires = kit.expiring(5)
    ceremony.sign_targets()
    api.admin.put("/trust", json=ceremony.document()).raise_for_status()
    assert api.viewer.get("/status").json()["warnings"] == ["the targets metadata expire in 4 days: sign them again"]
