"""Danger: a device joins without a token, twice with one, into another channel, or tokens can be guessed fast."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from edgewise_protocol.enrolment import EnrolResponse, decode_enrolment
from edgewise_server.api.rates import RateBound
from edgewise_server.errors import TooManyRequestsError
from edgewise_server.models.base import utc_now
from edgewise_server.models.devices import Enrolment
from sqlmodel import select

FACTS = {
    "machine": "aarch64",
    "compatible": ["raspberry-pi-4-64"],
    "engines": {"onnxruntime": "1.32.0"},
    "simulated": True,
}


def csr(name: str = "anything") -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder(subject)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def enrol(api, token: str, **values):
    return api.nobody.post("/enrol", json={"token": token, "csr_pem": csr(), "facts": FACTS} | values)


def enrolment(api, **values) -> dict:
    answer = api.operator.post("/enrolments", json={"channel": "lab"} | values)
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_device_enrols_with_the_file_and_appears(trusted_api, ceremony, kit):
    trusted_api.operator.post("/groups", json={"name": "bench"}).raise_for_status()
    made = enrolment(trusted_api, groups=["bench", "all"], name="camera-7")
    file = decode_enrolment(msgspec.json.encode(made))
    assert file.tuf_root.encode() == kit.to_bytes(ceremony.root)
    assert (file.channel, file.name, file.broker.port) == ("lab", "camera-7", 18830)
    answer = enrol(trusted_api, file.token)
    assert answer.status_code == 201
    response = msgspec.json.decode(answer.content, type=EnrolResponse)
    assert (response.device_id, response.channel) == ("camera-7", "lab")
    leaf, intermediate = x509.load_pem_x509_certificates(response.certificate_pem.encode())
    leaf.verify_directly_issued_by(intermediate)
    intermediate.verify_directly_issued_by(x509.load_pem_x509_certificate(file.fleet_ca.encode()))
    device = trusted_api.viewer.get("/devices/camera-7").json()
    assert device["facts"]["engines"] == {"onnxruntime": "1.32.0"}
    assert device["groups"] == ["bench"]
    assert device["simulated"] and not device["online"]
    assert device["certificate"]["serial"] == format(leaf.serial_number, "x")
    listed = trusted_api.operator.get("/enrolments").json()["items"]
    assert [(e["device_id"], bool(e["used_at"])) for e in listed] == [("camera-7", True)]
    assert file.token not in trusted_api.operator.get("/enrolments").text


def test_a_token_admits_one_device_even_when_many_try_at_once(trusted_api):
    token = enrolment(trusted_api)["token"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: enrol(trusted_api, token).status_code, range(8)))
    assert sorted(answers) == [201] + [403] * 7
    assert len(trusted_api.viewer.get("/devices").json()["items"]) == 1


def test_unknown_expired_and_withdrawn_tokens_are_refused(trusted_api):
    assert enrol(trusted_api, "ewe_" + "x" * 43).json()["code"] == "enrolment-refused"
    expired, withdrawn = enrolment(trusted_api), enrolment(trusted_api)
    with trusted_api.context.database.session() as session:
        row = session.exec(select(Enrolment).where(Enrolment.id == expired["id"])).one()
        row.expires_at = utc_now() - timedelta(seconds=1)
    assert trusted_api.operator.delete(f"/enrolments/{withdrawn['id']}").status_code == 204
    for made, code in ((expired, "enrolment-expired"), (withdrawn, "enrolment-refused")):
        answer = enrol(trusted_api, made["token"])
        assert (answer.status_code, answer.json()["code"]) == (403, code)
    assert trusted_api.viewer.get("/devices").json()["items"] == []


def test_a_bad_request_does_not_spend_the_token(trusted_api):
    token = enrolment(trusted_api)["token"]
    assert enrol(trusted_api, token, csr_pem="no csr").json()["code"] == "csr"
    assert enrol(trusted_api, token, facts={"machine": 7}).json()["code"] == "invalid"
    assert trusted_api.nobody.post("/enrol", content=b"{").status_code == 422
    assert enrol(trusted_api, token).status_code == 201


def test_the_channel_is_the_servers_whatever_the_csr_says(trusted_api):
    token = enrolment(trusted_api, channel="canary")["token"]
    answer = enrol(trusted_api, token, csr_pem=csr("production"), channel="production").json()
    leaf = x509.load_pem_x509_certificates(answer["certificate_pem"].encode())[0]
    assert answer["channel"] == "canary"
    assert [a.value for a in leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)] == ["canary"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"channel": "rounds"}, 422, "invalid"),
        ({"channel": "dev"}, 422, "invalid"),
        ({"channel": "a/b"}, 422, "invalid-request"),
        ({"channel": "lab", "groups": ["nowhere"]}, 404, "not-found"),
        ({"channel": "lab", "groups": ["rule"]}, 422, "invalid"),
        ({"channel": "lab", "name": "../x"}, 422, "topic"),
        ({"channel": "lab", "name": "edgewise-server"}, 422, "invalid"),
        ({"channel": "lab", "unknown": 1}, 422, "invalid-request"),
        ({}, 422, "invalid-request"),
    ],
)
def test_malformed_enrolments_are_refused(trusted_api, body, status, code):
    trusted_api.operator.post("/groups", json={"name": "rule", "query": "online == true"}).raise_for_status()
    answer = trusted_api.operator.post("/enrolments", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_before_the_ceremony_nothing_can_be_enrolled(api):
    answer = api.operator.post("/enrolments", json={"channel": "lab"})
    assert (answer.status_code, answer.json()["code"]) == (409, "trust-missing")


def test_a_taken_name_is_refused(trusted_api):
    first, second = enrolment(trusted_api, name="cam"), enrolment(trusted_api, name="cam")
    assert enrol(trusted_api, first["token"]).status_code == 201
    assert enrol(trusted_api, second["token"]).status_code == 403
    assert trusted_api.operator.post("/enrolments", json={"channel": "lab", "name": "cam"}).status_code == 409


def test_revoking_and_deleting_a_device_puts_its_certificate_on_the_list(trusted_api):
    serials = []
    for name in ("cam-1", "cam-2"):
        enrol(trusted_api, enrolment(trusted_api, name=name)["token"])
        serials.append(int(trusted_api.viewer.get(f"/devices/{name}").json()["certificate"]["serial"], 16))
    assert trusted_api.operator.post("/devices/cam-1/revoke").json()["revoked_at"]
    assert trusted_api.operator.delete("/devices/cam-2").status_code == 204
    assert trusted_api.viewer.get("/devices/cam-2").status_code == 404
    crl = x509.load_pem_x509_crl(trusted_api.viewer.get("/trust/crl").content)
    assert sorted(entry.serial_number for entry in crl) == sorted(serials)
    assert trusted_api.viewer.get("/groups/all").json()["devices"] == []


class TestRate:
    @pytest.fixture
    def context(self, kit, tmp_path):
        opened = kit.make_state(tmp_path / "state", enrol_per_minute=3)
        yield opened
        opened.close()

    def test_guessing_is_slowed_down(self, trusted_api):
        answers = [enrol(trusted_api, "ewe_" + "x" * 43) for _ in range(5)]
        assert [a.status_code for a in answers] == [403, 403, 403, 429, 429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 20


def test_the_rate_bound_refills_by_address_and_holds_for_all_together():
    now = [0.0]
    bound = RateBound(2, clock=lambda: now[0])
    bound.take("a")
    bound.take("a")
    with pytest.raises(TooManyRequestsError):
        bound.take("a")
    bound.take("b")
    now[0] = 30.0
    bound.take("a")
    with pytest.raises(TooManyRequestsError):
        bound.take("a")
    admitted = 0
    with pytest.raises(TooManyRequestsError):
        for number in range(100):
            bound.take(f"address-{number}")
            admitted += 1
    assert admitted == 19
