"""Danger: a device falls out of the fleet when its certificate ends or its CA is replaced, or who must go stays in."""

from __future__ import annotations

import json
import shutil
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from edgewise_protocol.renewal import signed_bytes

pytestmark = pytest.mark.slow

SHORT_DAYS = 165 / 86_400
"""Certificates begin 5 minutes before they are made: of these, two thirds are over 10 seconds after."""
QUICK = {"identity__look_s": 0.2, "identity__retry_min_s": 0.2, "identity__retry_max_s": 1.0}
BOARD = "raspberry-pi-4-64"


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, bundles: Any, fleets: Any, secured: Any, processes: Any
) -> Iterator[Any]:
    made = secured.make(fleets, tmp_path_factory.mktemp("fleet"), processes, bundles)
    made.env["EDGEWISE_SERVER_RENEWAL_CHECK_S"] = "0.5"
    yield from secured.alive(made)


def restart_server(fleet: Any, **settings: object) -> None:
    fleet.server.stop()
    for name in ("CERTIFICATE_DAYS",):
        fleet.env.pop(f"EDGEWISE_SERVER_{name}", None)
    fleet.env.update({f"EDGEWISE_SERVER_{name.upper()}": str(value) for name, value in settings.items()})
    fleet.start_server()


def shown(fleet: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = fleet.get(f"/devices/{name}")
    return found


def online(fleet: Any, name: str, timeout_s: float = 30) -> None:
    fleet.wait_for(f"{name} is online", lambda: shown(fleet, name)["online"], timeout_s)


def status(fleet: Any, device: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fleet.command("edgewise-agent", "status", "--json", "--state", device.state))
    return found


def stands(fleet: Any, device: Any, code: str) -> None:
    fleet.wait_for(f"{device.name} stands as {code!r}", lambda: status(fleet, device)["identity_code"] == code, 30, 0.3)


def device_of(fleet: Any, name: str, **settings: object) -> Any:
    device = fleet.enrol(name, BOARD)
    fleet.start_device(device, **QUICK, **settings)
    online(fleet, name)
    return device


def put_away(fleet: Any, device: Any) -> None:
    """Stop a device for good; it must end in order."""
    assert device.process.stop() == 0, device.process.text[-3000:]
    fleet.devices.remove(device)


def leaf_and_issuer(state: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates((state / "identity/certificate.pem").read_bytes())


def test_a_certificate_is_renewed_in_time_and_the_device_works_on(fleet: Any, tmp_path: Path) -> None:
    restart_server(fleet, certificate_days=SHORT_DAYS)
    device = fleet.enrol("renewing", BOARD)
    shutil.copytree(device.state / "identity", tmp_path / "old" / "identity")
    fleet.start_device(device, **QUICK)
    online(fleet, "renewing")
    first = shown(fleet, "renewing")["certificate"]["serial"]

    def renewed() -> bool:
        certificate = shown(fleet, "renewing")["certificate"]
        return certificate["serial"] != first and not certificate["renewed_serial"]

    fleet.wait_for("the renewed certificate is in use", renewed, 40)
    restart_server(fleet)
    # the next renewal gives it a certificate for a year
    fleet.wait_for(
        "a certificate of the usual life",
        lambda: leaf_and_issuer(device.state)[0].not_valid_after_utc > datetime.now(UTC) + timedelta(days=300),
        40,
    )
    online(fleet, "renewing")
    fleet.publish("walk", 1)
    fleet.roll_out("walk", 1)
    assert "Traceback" not in device.process.text
    # the first certificate and its key, which somebody copied, are worth nothing any more
    fleet.wait_for("the old certificate is revoked", lambda: int(first, 16) in revoked(fleet), 10)

    def refused() -> bool:
        client = fleet.client(fleet.tls(tmp_path / "old"), client_id="renewing")
        connected = client.connected
        client.close()
        return not connected

    fleet.wait_for("the broker refuses the old certificate", refused, 10, 0.5)
    online(fleet, "renewing")


def revoked(fleet: Any) -> set[int]:
    answer = httpx.get(
        f"{fleet.env['EDGEWISE_SERVER']}/api/v1/trust/crl",
        headers={"Authorization": f"Bearer {fleet.env['EDGEWISE_TOKEN']}"},
        timeout=20,
    )
    return {entry.serial_number for entry in x509.load_pem_x509_crl(answer.content)}


def test_a_revoked_device_learns_it_says_it_and_does_not_hammer(fleet: Any) -> None:
    device = device_of(fleet, "stolen")
    fleet.edgewise("device", "revoke", "stolen")
    stands(fleet, device, "device-revoked")
    asked = device.process.text.count("the certificate is to be renewed")
    assert "device-revoked" in fleet.command("edgewise-agent", "status", "--state", device.state)
    device.process.stop()
    fleet.start_device(device, **QUICK)
    fleet.wait_for("the broker refuses it again", lambda: device.process.text.count("not connected") >= 4, 30)
    assert device.process.text.count("the certificate is to be renewed") == asked, "it asked again after its restart"
    put_away(fleet, device)


def test_a_decommissioned_device_learns_it_and_can_be_erased(fleet: Any) -> None:
    device = device_of(fleet, "retired")
    found = fleet.edgewise("device", "decommission", "retired", "--wait", 30)
    assert found["decommissioned_at"] and found["revoked_at"]
    stands(fleet, device, "device-decommissioned")
    put_away(fleet, device)
    fleet.command("edgewise-agent", "erase", "--state", device.state, "--yes")
    assert not device.state.exists()
    assert any(d["id"] == "retired" for d in fleet.edgewise("device", "list")["devices"]), "the row is kept"


def test_a_cloned_identity_is_noticed_and_named_on_both_sides(fleet: Any) -> None:
    device = device_of(fleet, "cloned")
    device.process.stop()
    copy = fleet.enrol("cloned-copy", BOARD)
    shutil.rmtree(copy.state)
    shutil.copytree(device.state, copy.state)
    fleet.start_device(device, **QUICK)
    online(fleet, "cloned")
    assert shown(fleet, "cloned")["cloned_at"] is None, "a restart is no clone"
    fleet.start_device(copy, **QUICK)
    fleet.wait_for("the server notices", lambda: shown(fleet, "cloned")["cloned_at"], 40)
    assert len(shown(fleet, "cloned")["cloned_instances"]) == 2
    codes = ("cloned-identity",)
    fleet.wait_for("an agent notices", lambda: status(fleet, device)["identity_code"] in codes, 40, 0.3)
    alerts = [a for a in fleet.get("/alerts")["alerts"] if a["kind"] == "cloned-identity"]
    assert [a["device_id"] for a in alerts] == ["cloned"]
    copy.process.stop()
    # new hardware takes the place: the copy is out for good
    file, state = fleet.folder / "replacement.enrol.json", fleet.folder / "replacement"
    fleet.edgewise("device", "replace", "cloned", "--out", file, "--keys", fleet.keys)
    device.process.stop()
    fleet.command("edgewise-agent", "enrol", file, "--state", state, "--simulated-board", BOARD)
    assert shown(fleet, "cloned")["cloned_at"] is None
    shutil.rmtree(device.state)
    state.rename(device.state)
    fleet.start_device(device, **QUICK)
    online(fleet, "cloned")
    fleet.start_device(copy, **QUICK)
    stands(fleet, copy, "device-key-unknown")
    put_away(fleet, copy)


def test_after_a_theft_of_the_online_keys_devices_recover_by_themselves(fleet: Any, tmp_path: Path) -> None:
    device = fleet.device("renewing")
    stolen = load_pem_private_key((fleet.state / "keys/intermediate.pem").read_bytes(), None)
    _, old = leaf_and_issuer(device.state)
    fleet.command("edgewise-server", "rotate-keys", "--state", fleet.state)
    fleet.edgewise("keys", "rotate-online", fleet.keys, "--online", fleet.state / "online.json")
    fleet.edgewise("trust", "install", fleet.keys)
    assert fleet.edgewise("trust", "install", fleet.keys)["roles"]["root"]["version"] == 2
    assert not (fleet.state / "keys/next").exists()

    def recovered() -> bool:
        return leaf_and_issuer(device.state)[1] != old and shown(fleet, "renewing")["online"]

    fleet.wait_for("the device has a certificate of the new intermediate", recovered, 60, 0.3)
    fleet.publish("walk", 2)
    fleet.roll_out("walk", 2)
    # what the thief mints with the stolen intermediate opens neither the broker nor the server
    thief = ec.generate_private_key(ec.SECP256R1())
    forged = mint(stolen, old, thief, tmp_path)
    client = fleet.client(forged, client_id="renewing")
    connected, outcome = client.connected, client.outcome
    client.close()
    assert not connected, outcome
    answer = renew_as(fleet, "renewing", thief)
    assert (answer.status_code, answer.json()["code"]) == (403, "device-key-unknown")
    online(fleet, "renewing")


def mint(intermediate_key: Any, intermediate: x509.Certificate, key: Any, folder: Path) -> ssl.SSLContext:
    """The TLS context of a certificate for `renewing` that the holder of an intermediate key makes."""
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "renewing")])
    leaf = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(intermediate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(intermediate.public_key()), critical=False)
        .sign(intermediate_key, hashes.SHA256())
    )
    chain, private = folder / "forged.pem", folder / "forged-key.pem"
    chain.write_bytes(leaf.public_bytes(Encoding.PEM) + intermediate.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(chain, private)
    return context


def renew_as(fleet: Any, name: str, key: Any) -> httpx.Response:
    base = f"{fleet.env['EDGEWISE_SERVER']}/api/v1/renew"
    nonce = httpx.post(f"{base}/nonce", json={"device_id": name}, timeout=20).json()["nonce"]
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256())
    csr = request.public_bytes(Encoding.PEM).decode()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    signature = key.sign(signed_bytes(name, nonce, csr), ec.ECDSA(hashes.SHA256())).hex()
    body = {"device_id": name, "nonce": nonce, "csr_pem": csr, "public_key_pem": public, "signature": signature}
    return httpx.post(base, json=body, timeout=20)
