"""Danger: a device chooses its own name or channel, a stranger's key gets a certificate, a key lies open."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store
from edgewise_server.errors import CsrError, SettingsError
from edgewise_server.pki.authority import load_authority
from edgewise_server.trust.keys import create_keys, load_keys


def csr_of(key, name="whatever", algorithm=None):
    builder = x509.CertificateSigningRequestBuilder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
    signing = None if isinstance(key, ed25519.Ed25519PrivateKey) else (algorithm or hashes.SHA256())
    return builder.sign(key, signing).public_bytes(Encoding.PEM).decode()


def issue(context, ceremony, kit, csr, days=365.0):
    pems = ceremony.fleet_ca()
    issued = context.authority.issue(csr, pems[1], device_id="cam-1", channel="lab", now=kit.NOW, days=days)
    return issued, pems


@pytest.mark.parametrize(
    "make_key",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate,
    ],
    ids=["p256", "p384", "ed25519"],
)
def test_a_leaf_carries_the_servers_names_and_verifies_as_a_client(context, ceremony, kit, make_key):
    issued, (root_pem, _) = issue(context, ceremony, kit, csr_of(make_key(), "admin,OU=production"))
    leaf, intermediate = x509.load_pem_x509_certificates(issued.chain_pem.encode())
    names = {a.oid: a.value for a in leaf.subject}
    assert names == {NameOID.COMMON_NAME: "cam-1", NameOID.ORGANIZATIONAL_UNIT_NAME: "lab"}
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == ["edgewise:lab/cam-1"]
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert format(leaf.serial_number, "x") == issued.serial
    assert leaf.not_valid_after_utc == issued.not_after == kit.NOW + timedelta(days=365)
    leaf.verify_directly_issued_by(intermediate)
    intermediate.verify_directly_issued_by(x509.load_pem_x509_certificate(root_pem.encode()))


def test_a_leaf_does_not_outlive_the_intermediate(context, ceremony, kit):
    issued, (_, intermediate_pem) = issue(
        context, ceremony, kit, csr_of(ec.generate_private_key(ec.SECP256R1())), days=9_999
    )
    assert issued.not_after == x509.load_pem_x509_certificate(intermediate_pem.encode()).not_valid_after_utc


def test_weak_keys_wrong_signatures_and_garbage_are_refused(context, ceremony, kit):
    good = csr_of(ec.generate_private_key(ec.SECP256R1()))
    der = bytearray(x509.load_pem_x509_csr(good.encode()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
    refused = [
        csr_of(rsa.generate_private_key(65537, 2048)),
        csr_of(ec.generate_private_key(ec.SECP521R1())),
        forged,
        good[:200],
        "",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    ]
    for csr in refused:
        with pytest.raises(CsrError):
            issue(context, ceremony, kit, csr)


def test_private_keys_are_readable_by_their_owner_alone(context, tmp_path):
    folder = tmp_path / "state" / "keys"
    paths = sorted(folder.glob("*.pem"))
    assert [p.name for p in paths] == ["director.pem", "intermediate.pem", "snapshot.pem", "timestamp.pem"]
    assert {p.stat().st_mode & 0o777 for p in paths} == {0o600}
    assert folder.stat().st_mode & 0o077 == 0


def test_a_key_that_others_may_read_is_not_used(context, tmp_path):
    folder = tmp_path / "state" / "keys"
    (folder / "director.pem").chmod(0o644)
    with pytest.raises(SettingsError, match="readable by others"):
        load_keys(folder)
    (folder / "intermediate.pem").write_bytes(b"no key")
    with pytest.raises(SettingsError, match="damaged"):
        load_authority(folder)


def test_keys_are_made_once_and_never_replaced(tmp_path):
    first = create_keys(tmp_path / "keys").describe()
    assert create_keys(tmp_path / "keys").describe() == first
    assert "PRIVATE" not in repr(create_keys(tmp_path / "keys"))


def test_the_chain_passes_an_independent_verifier(context, ceremony, kit):
    issued, (root_pem, _) = issue(context, ceremony, kit, csr_of(ec.generate_private_key(ec.SECP256R1())))
    leaf, intermediate = x509.load_pem_x509_certificates(issued.chain_pem.encode())
    root = x509.load_pem_x509_certificate(root_pem.encode())
    policy = PolicyBuilder().store(Store([root])).time(kit.NOW.replace(tzinfo=None))
    from cryptography.x509.verification import Criticality, ExtensionPolicy

    lax = ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.CRITICAL, None)
    verifier = policy.extension_policies(ca_policy=lax, ee_policy=ExtensionPolicy.permit_all()).build_client_verifier()
    assert verifier.verify(leaf, [intermediate]).chain[0] == leaf
