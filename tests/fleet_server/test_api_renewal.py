"""Danger: somebody renews a certificate who does not hold the device's key, or a device that may cannot."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from edgewise_protocol.messages import Status
from edgewise_protocol.renewal import RenewResponse, signed_bytes
from edgewise_server.models.access import AuditEntry
from edgewise_server.models.base import utc_now
from edgewise_server.models.devices import Device, RevokedCertificate
from edgewise_server.services import devices, renewals
from sqlmodel import select

FACTS = {"machine": "aarch64", "compatible": ["raspberry-pi-4-64"], "simulated": True}


def csr(key) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return x509.CertificateSigningRequestBuilder(subject).sign(key, algorithm).public_bytes(Encoding.PEM).decode()


class DeviceKeys:
    """A device that is enrolled over HTTP, and renews as an agent does."""

    def __init__(self, api, name="cam", key=None):
        self.api, self.name = api, name
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        made = api.operator.post("/enrolments", json={"channel": "lab", "name": name}).json()
        self.enrol(made["token"])

    def enrol(self, token):
        answer = self.api.nobody.post("/enrol", json={"token": token, "csr_pem": csr(self.key), "facts": FACTS})
        assert answer.status_code == 201, answer.text
        self.certificate = x509.load_pem_x509_certificates(answer.json()["certificate_pem"].encode())[0]

    def nonce(self, name=None) -> str:
        return self.api.nobody.post("/renew/nonce", json={"device_id": name or self.name}).json()["nonce"]

    def body(self, *, nonce=None, following=None, key=None, name=None) -> dict:
        key, name = key or self.key, name or self.name
        nonce = nonce or self.nonce(name)
        request = csr(following or ec.generate_private_key(ec.SECP256R1()))
        data = signed_bytes(name, nonce, request)
        signature = key.sign(data) if isinstance(key, ed25519.Ed25519PrivateKey) else key.sign(
            data, ec.ECDSA(hashes.SHA256())
        )  # fmt: skip
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        return {
            "device_id": name,
            "nonce": nonce,
            "csr_pem": request,
            "public_key_pem": public,
            "signature": signature.hex(),
        }

    def renew(self, **how):
        return self.api.nobody.post("/renew", json=self.body(**how))

    def born(self, serial) -> bool:
        with self.api.context.database.session() as session:
            device = devices.get(session, self.name)
            return renewals.confirm(session, device, Status(online=True, session="s", certificate_serial=serial))

    def row(self) -> Device:
        with self.api.context.database.session(read_only=True) as session:
            return devices.get(session, self.name)


def leaf_of(answer) -> x509.Certificate:
    found = msgspec.json.decode(answer.content, type=RenewResponse)
    return x509.load_pem_x509_certificates(found.certificate_pem.encode())[0]


@pytest.fixture
def device(trusted_api):
    return DeviceKeys(trusted_api)


def revoked_serials(api) -> set[int]:
    api.context.refresh_crl()
    return {entry.serial_number for entry in x509.load_pem_x509_crl(api.viewer.get("/trust/crl").content)}


def test_the_old_certificate_counts_until_the_new_one_is_seen_in_use(device):
    following = ec.generate_private_key(ec.SECP256R1())
    answer = device.renew(following=following)
    assert answer.status_code == 200, answer.text
    found, leaf = msgspec.json.decode(answer.content, type=RenewResponse), leaf_of(answer)
    assert (found.device_id, found.channel, found.broker.port) == ("cam", "lab", 18830)
    assert leaf.public_key() == following.public_key()
    assert [str(a.value) for a in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["cam"]
    assert revoked_serials(device.api) == set()
    shown = device.api.viewer.get("/devices/cam").json()["certificate"]
    assert shown["serial"] == format(device.certificate.serial_number, "x")
    assert shown["renewed_serial"] == format(leaf.serial_number, "x")
    assert not device.born(format(device.certificate.serial_number, "x"))
    assert device.born(format(leaf.serial_number, "x"))
    assert revoked_serials(device.api) == {device.certificate.serial_number}
    # from now on the new key proves, and the old one does not
    assert device.renew(key=following).status_code == 200
    refused = device.renew()
    assert (refused.status_code, refused.json()["code"]) == (403, "device-key-unknown")
    with device.api.context.database.session() as session:
        entries = session.exec(select(AuditEntry).where(AuditEntry.action == "device.renew")).all()
        assert [entry.subject for entry in entries] == ["cam", "cam"]


def test_a_lost_answer_is_harmless_and_the_certificate_that_nobody_got_is_revoked(device):
    following = ec.generate_private_key(ec.SECP256R1())
    lost = leaf_of(device.renew(following=following))
    again = leaf_of(device.renew(following=following))
    assert lost.serial_number != again.serial_number
    assert revoked_serials(device.api) == {lost.serial_number}
    assert device.born(format(again.serial_number, "x"))


def test_a_recorded_request_cannot_be_played_again(device):
    body = device.body()
    assert device.api.nobody.post("/renew", json=body).status_code == 200
    answer = device.api.nobody.post("/renew", json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "renewal-nonce")


def test_a_nonce_is_for_one_device_and_for_a_while(device, monkeypatch):
    other = DeviceKeys(device.api, "other")
    answer = device.renew(nonce=other.nonce())
    assert answer.json()["code"] == "renewal-nonce"
    assert device.renew(nonce="A" * 43).json()["code"] == "renewal-nonce"
    nonce = device.nonce()
    later = utc_now() + timedelta(seconds=renewals.NONCE_S + 2)
    monkeypatch.setattr("edgewise_server.api.devices.utc_now", lambda: later)
    answer = device.renew(nonce=nonce)
    assert (answer.status_code, answer.json()["code"]) == (409, "renewal-nonce")


def test_a_certificate_that_a_thief_of_the_intermediate_minted_renews_nothing(device):
    """The thief holds the intermediate: he mints a certificate for the id and a key of his own, and asks with that."""
    thief = ec.generate_private_key(ec.SECP256R1())
    answer = device.renew(key=thief)
    assert (answer.status_code, answer.json()["code"]) == (403, "device-key-unknown")
    assert device.row().next_serial == ""
    # nor does naming the device's key without holding it
    body = device.body(key=thief) | {"public_key_pem": device.body()["public_key_pem"]}
    assert device.api.nobody.post("/renew", json=body).json()["code"] == "device-key-unknown"


@pytest.mark.parametrize("changed", ["csr_pem", "device_id", "signature"])
def test_no_part_of_a_request_can_be_exchanged(device, changed):
    DeviceKeys(device.api, "other")
    body = device.body()
    body[changed] = {
        "csr_pem": csr(ec.generate_private_key(ec.SECP256R1())),
        "device_id": "other",
        "signature": device.body()["signature"],
    }[changed]
    answer = device.api.nobody.post("/renew", json=body)
    assert answer.status_code in (403, 409)
    assert device.row().next_serial == ""


def test_an_ed25519_device_renews_too(trusted_api):
    device = DeviceKeys(trusted_api, "ed", ed25519.Ed25519PrivateKey.generate())
    assert device.renew(following=ed25519.Ed25519PrivateKey.generate()).status_code == 200


def test_who_may_not_renew_is_told_why_but_only_who_holds_the_key(device):
    api = device.api
    api.operator.post("/devices/cam/revoke").raise_for_status()
    answer = device.renew()
    assert (answer.status_code, answer.json()["code"]) == (403, "device-revoked")
    stranger = ec.generate_private_key(ec.SECP256R1())
    assert device.renew(key=stranger).json()["code"] == "device-key-unknown"


@pytest.mark.parametrize(("days_ago", "status"), [(29, 200), (31, 403)])
def test_an_expired_certificate_renews_within_the_grace_period(device, days_ago, status):
    with device.api.context.database.session() as session:
        devices.get(session, "cam").certificate_not_after = utc_now() - timedelta(days=days_ago)
    answer = device.renew()
    assert answer.status_code == status
    if status != 200:
        assert answer.json()["code"] == "renewal-too-late"


@pytest.mark.parametrize("body", [b"{", b"{}", b'{"device_id": "../x", "nonce": "' + b"a" * 20 + b'"}', b"[" * 50_000])
def test_malformed_requests_are_refused(device, body):
    for path in ("/renew", "/renew/nonce"):
        answer = device.api.nobody.post(path, content=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


class TestRate:
    @pytest.fixture
    def context(self, kit, tmp_path):
        opened = kit.make_state(tmp_path / "state", renew_per_minute=3)
        yield opened
        opened.close()

    def test_asking_is_slowed_down(self, trusted_api):
        answers = [trusted_api.nobody.post("/renew/nonce", json={"device_id": "x"}) for _ in range(5)]
        assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
        assert int(answers[-1].headers["retry-after"]) >= 1


class TestReplacement:
    def test_new_hardware_takes_the_place_and_the_old_certificate_is_revoked_when_it_does(self, trusted_api):
        api = trusted_api
        api.operator.post("/groups", json={"name": "bench"}).raise_for_status()
        made = api.operator.post("/enrolments", json={"channel": "lab", "name": "cam", "groups": ["bench"]}).json()
        device = DeviceKeys(api, "spare")
        old = ec.generate_private_key(ec.SECP256R1())
        device.name, device.key = "cam", old
        device.enrol(made["token"])
        first = device.certificate
        file = api.operator.post("/devices/cam/replace", json={})
        assert file.status_code == 201, file.text
        assert (file.json()["name"], file.json()["channel"]) == ("cam", "lab")
        assert revoked_serials(api) == set()
        assert device.renew().status_code == 200, "until the file is used the old device stays in"
        device.key = ec.generate_private_key(ec.SECP256R1())
        device.enrol(file.json()["token"])
        assert first.serial_number in revoked_serials(api)
        assert device.renew(key=old).json()["code"] == "device-key-unknown"
        assert device.renew().status_code == 200
        shown = api.viewer.get("/devices/cam").json()
        assert (shown["groups"], shown["revoked_at"], shown["online"]) == (["bench"], None, False)

    def test_a_revoked_device_can_be_replaced_and_a_decommissioned_one_cannot(self, device):
        api = device.api
        api.operator.post("/devices/cam/revoke").raise_for_status()
        token = api.operator.post("/devices/cam/replace", json={}).json()["token"]
        device.key = ec.generate_private_key(ec.SECP256R1())
        device.enrol(token)
        assert api.viewer.get("/devices/cam").json()["revoked_at"] is None
        late = api.operator.post("/devices/cam/replace", json={}).json()["token"]
        api.operator.post("/devices/cam/decommission", json={"within_s": 0}).raise_for_status()
        assert api.operator.post("/devices/cam/replace", json={}).status_code == 409
        answer = api.nobody.post("/enrol", json={"token": late, "csr_pem": csr(device.key), "facts": FACTS})
        assert (answer.status_code, answer.json()["code"]) == (403, "enrolment-refused")
        assert api.operator.post("/devices/nowhere/replace", json={}).status_code == 404


class TestDecommission:
    def finish(self, api):
        with api.context.database.session() as session:
            return devices.finish_decommissions(session, utc_now())

    def test_a_device_is_told_to_run_nothing_first_and_revoked_when_it_says_so(self, device):
        api = device.api
        shown = api.operator.post("/devices/cam/decommission", json={}).json()
        assert shown["decommission_by"] and shown["decommissioned_at"] is None and shown["revoked_at"] is None
        assert (shown["assignment_version"], shown["assignment"]["bundles"]) == (1, [])
        assert self.finish(api) == []
        for models, version, ended in (
            ([{"model": "m", "state": "committed", "active_version": 2}], 1, []),
            ([], 0, []),
            ([], 1, ["cam"]),
        ):
            with api.context.database.session() as session:
                devices.get(session, "cam").reported = {"assignment_version": version, "models": models}
            assert self.finish(api) == ended
        shown = api.viewer.get("/devices/cam").json()
        assert shown["decommissioned_at"] and shown["revoked_at"]
        assert device.certificate.serial_number in revoked_serials(api)
        answer = device.renew()
        assert (answer.status_code, answer.json()["code"]) == (403, "device-decommissioned")
        assert self.finish(api) == []

    def test_a_device_that_does_not_answer_is_revoked_when_its_time_is_over(self, device):
        device.api.operator.post("/devices/cam/decommission", json={"within_s": 0}).raise_for_status()
        assert self.finish(device.api) == ["cam"]

    def test_no_group_counts_it_any_more(self, device):
        api = device.api
        api.operator.post("/devices/cam/decommission", json={}).raise_for_status()
        assert api.viewer.get("/groups/all").json()["devices"] == []


def test_a_board_that_nobody_knows_is_refused_with_those_that_there_are(trusted_api):
    made = trusted_api.operator.post("/enrolments", json={"channel": "lab"}).json()
    facts = FACTS | {"compatible": ["rapsberry-pi-5"]}
    key = ec.generate_private_key(ec.SECP256R1())
    answer = trusted_api.nobody.post("/enrol", json={"token": made["token"], "csr_pem": csr(key), "facts": facts})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown-board")
    assert "raspberry-pi-5" in answer.json()["detail"]
    # the token is unspent, and real hardware is not held against the catalogue
    facts |= {"simulated": False}
    answer = trusted_api.nobody.post("/enrol", json={"token": made["token"], "csr_pem": csr(key), "facts": facts})
    assert answer.status_code == 201


def test_the_answers_do_not_tell_who_is_in_the_fleet(device):
    """Anybody may ask: a device that is there and one that is not must look alike to who holds no key."""
    stranger = ec.generate_private_key(ec.SECP256R1())

    def answers(name: str) -> list[tuple[int, str, str]]:
        found = [device.renew(name=name, key=stranger), device.renew(name=name, key=stranger, nonce="A" * 43)]
        return [(a.status_code, a.json()["code"], a.json()["detail"].replace(name, "-")) for a in found]

    assert answers("cam") == answers("nobody-here")
    assert answers("cam")[0][1] == "device-key-unknown"


def test_a_revocation_withdraws_the_files_that_would_bring_the_device_back(device):
    """Whoever stole the device may have stolen the file for its replacement too."""
    api = device.api
    before = api.operator.post("/devices/cam/replace", json={}).json()["token"]
    api.operator.post("/devices/cam/revoke").raise_for_status()
    body = {"csr_pem": csr(device.key), "facts": FACTS}
    answer = api.nobody.post("/enrol", json=body | {"token": before})
    assert (answer.status_code, answer.json()["code"]) == (403, "enrolment-refused")
    assert device.row().revoked_at is not None
    # a file that is made after it is meant
    later = api.operator.post("/devices/cam/replace", json={}).json()["token"]
    another = api.operator.post("/devices/cam/replace", json={}).json()["token"]
    device.enrol(later)
    assert device.row().revoked_at is None
    api.operator.delete("/devices/cam").raise_for_status()
    answer = api.nobody.post("/enrol", json=body | {"token": another})
    assert (answer.status_code, answer.json()["code"]) == (403, "enrolment-refused")


def test_a_revocation_beside_a_renewal_leaves_no_certificate_that_counts(kit, tmp_path, postgres):
    """On PostgreSQL both run side by side: what the one read before the other committed must not decide."""
    context = kit.make_state(tmp_path / "state", database_url=postgres.make_migrated())
    until = utc_now() + timedelta(days=9)
    try:
        with context.database.session() as session:
            session.add(Device(id="cam", channel="lab", certificate_serial="a", certificate_not_after=until))
        with context.database.session() as revoking:
            seen = devices.get(revoking, "cam")
            assert seen.next_serial == ""
            with context.database.session() as renewing:
                found = devices.get(renewing, "cam")
                found.next_key_sha256, found.next_serial, found.next_not_after = "0" * 64, "b", until
            devices.revoke(revoking, "cam")
        with context.database.session(read_only=True) as session:
            listed = set(session.exec(select(RevokedCertificate.serial)))
        assert listed == {"a", "b"}
    finally:
        context.close()


def test_a_birth_beside_a_renewal_does_not_forget_the_newer_certificate(kit, tmp_path, postgres):
    context = kit.make_state(tmp_path / "state", database_url=postgres.make_migrated())
    until = utc_now() + timedelta(days=9)
    try:
        with context.database.session() as session:
            session.add(
                Device(
                    id="cam",
                    channel="lab",
                    certificate_serial="a",
                    certificate_not_after=until,
                    next_serial="b",
                    next_not_after=until,
                )
            )
        with context.database.session() as storing:
            device = devices.get(storing, "cam")
            with context.database.session() as renewing:
                devices.get(renewing, "cam").next_serial = "c"
            assert not renewals.confirm(storing, device, Status(online=True, session="s", certificate_serial="b"))
        with context.database.session(read_only=True) as session:
            found = devices.get(session, "cam")
            assert (found.certificate_serial, found.next_serial) == ("a", "c")
    finally:
        context.close()
