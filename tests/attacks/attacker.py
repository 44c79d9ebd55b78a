"""What an attacker holds, and what can be done with it: stolen keys and forged documents. Its network is in `network`.

`Thief` has taken the server's whole state folder: the online TUF keys, the fleet's intermediate, the certificates of
server and broker. Nothing here holds an offline key, a worker's key or a device's key: that is what is tested.
"""

from __future__ import annotations

import hashlib
import io
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from edgewise_protocol import topics
from edgewise_protocol.assignment import AssignmentBody, build_assignment
from edgewise_protocol.chunks import build_index, iter_chunks
from edgewise_protocol.metadata import encode_metadata
from edgewise_protocol.targets import SignedFile, from_target_file
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

SERVER_USER: Final = "edgewise-server"
T = TypeVar("T")
_ATTEMPTS: Final = 5


def later(days: float = 30) -> datetime:
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)


class Thief:
    """A copy of a server's state folder, and access to what the server reads and writes."""

    def __init__(self, fleet: Any) -> None:
        self._fleet = fleet
        self._keys = fleet.state / "keys"
        self._loot = fleet.folder / "loot"
        self._loot.mkdir(exist_ok=True)
        self._stolen: dict[str, CryptoSigner] = {}
        for role in ("snapshot", "timestamp", "director"):
            private = serialization.load_pem_private_key((self._keys / f"{role}.pem").read_bytes(), None)
            self._stolen[role] = CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))
        for name in ("server.pem", "broker.pem"):
            (self._loot / name).write_bytes((fleet.broker.files / name).read_bytes())
        (self._loot / "intermediate.pem").write_bytes((self._keys / "intermediate.pem").read_bytes())

    def key(self, role: str) -> CryptoSigner:
        """`snapshot`, `timestamp` or `director`."""
        return self._stolen[role]

    # -- TLS ---------------------------------------------------------------------------------

    @property
    def _ca(self) -> str:
        return str(self._fleet.devices[0].state / "identity" / "fleet-ca.pem")

    def as_broker(self) -> ssl.SSLContext:
        """The broker's own certificate and key, in the hands of whoever stands in for it."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self._ca)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self._loot / "broker.pem")
        return context

    def as_client(self, name: str) -> ssl.SSLContext:
        """A client certificate in any name, by the stolen intermediate; the server's own is at hand."""
        path = self._loot / ("server.pem" if name == SERVER_USER else f"as-{name}.pem")
        if not path.exists():
            path.write_bytes(self._issue(name))
        context = ssl.create_default_context(cafile=self._ca)
        context.load_cert_chain(path)
        return context

    def _issue(self, name: str) -> bytes:
        signer: Any = serialization.load_pem_private_key((self._loot / "intermediate.pem").read_bytes(), None)
        issuer = x509.load_pem_x509_certificates((self._loot / "broker.pem").read_bytes())[1]
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(signer, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in (leaf, issuer)) + private

    # -- the broker --------------------------------------------------------------------------

    def say(self, topic: str, payload: bytes, *, retain: bool = True) -> None:
        """Publish in the server's name."""
        answer = self._as_server(lambda client: client.publish(topic, payload, retain=retain))
        assert answer in ("Success", "No matching subscribers"), answer

    def hear(self, topic: str) -> bytes:
        """What is retained on a topic; empty if nothing is."""

        def listen(client: Any) -> bytes:
            client.subscribe(topic, topics.SENTINEL)
            self._fleet.wait_for("the sentinel", lambda: topics.SENTINEL in dict(client.messages), 5, 0.01)
            return bytes(dict(client.messages).get(topic, b""))

        return self._as_server(listen)

    def _as_server(self, act: Callable[[Any], T]) -> T:
        """The true server comes back under the same name at once, and may cut the thief off: then once more."""
        for attempt in range(_ATTEMPTS):
            client = self._fleet.client(self.as_client(SERVER_USER))
            try:
                return act(client)
            except AssertionError:
                if not client.ended or attempt == _ATTEMPTS - 1:
                    raise
            finally:
                client.close()
        raise AssertionError("not reached")

    def retain(self, data: bytes) -> tuple[str, int, str]:
        """Publish a file's chunks and its chunk index, under the names that their digests give them.

        Returns:
            digest and length of the file, digest of the index.
        """
        index = build_index(io.BytesIO(data))
        for content in (data, index):
            digest = hashlib.sha256(content).hexdigest()
            for n, chunk in enumerate(iter_chunks(io.BytesIO(content))):
                self.say(topics.blob(digest, n), chunk)
        return hashlib.sha256(data).hexdigest(), len(data), hashlib.sha256(index).hexdigest()

    # -- documents ---------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        """A metadata file as the server has it."""
        answer = httpx.get(
            f"{self._fleet.env['EDGEWISE_SERVER']}/api/v1/metadata/{quote(name, safe='')}",
            headers={"Authorization": f"Bearer {self._fleet.env['EDGEWISE_TOKEN']}"},
            timeout=20,
        )
        answer.raise_for_status()
        return answer.content

    def role(self, name: str) -> Metadata[Any]:
        """The newest metadata of a role."""
        return Metadata.from_bytes(self.read(f"{quote(name, safe='')}.json"))

    def signed(self, path: str, role: str = "targets") -> SignedFile:
        """What a trusted role has signed under a path."""
        return from_target_file(self.role(role).signed.targets[path])

    def assignment(
        self,
        device: str,
        *bundles: SignedFile,
        version: int,
        channel: str = "lab",
        days: float = 7,
        signer: str = "director",
    ) -> bytes:
        """An assignment that the stolen director signs; every field is the thief's choice."""
        body = AssignmentBody(device=device, channel=channel, confirm_within_s=600, deployment="forged")
        metadata = build_assignment(body, bundles, version=version, expires=later(days))
        metadata.sign(self.key(signer))
        return encode_metadata(metadata)

    def repository(
        self, forged: dict[str, Metadata[Targets]], *, jump: int = 1, claim: dict[str, int] | None = None
    ) -> dict[str, bytes]:
        """Topics of a snapshot and a timestamp that name forged roles beside the true ones; timestamp last.

        Args:
            forged: role metadata by name.
            jump: how far the versions of snapshot and timestamp go forward.
            claim: versions that the snapshot merely claims for roles; 0 leaves the role out.
        """
        snapshot, timestamp = self.role("snapshot"), self.role("timestamp")
        assert isinstance(snapshot.signed, Snapshot) and isinstance(timestamp.signed, Timestamp)
        found: dict[str, bytes] = {}
        for name, version in (claim or {}).items():
            snapshot.signed.meta.pop(f"{name}.json", None)
            if version:
                snapshot.signed.meta[f"{name}.json"] = MetaFile(version=version)
        for name, metadata in forged.items():
            version = metadata.signed.version
            snapshot.signed.meta[f"{name}.json"] = MetaFile(version=version)
            found[topics.metadata(f"{version}.{quote(name, safe='')}.json")] = encode_metadata(metadata)
        snapshot.signed.version += jump
        snapshot.signed.expires = later()
        snapshot.sign(self.key("snapshot"))
        found[topics.metadata(f"{snapshot.signed.version}.snapshot.json")] = encode_metadata(snapshot)
        timestamp.signed.version += jump
        timestamp.signed.snapshot_meta = MetaFile(version=snapshot.signed.version)
        timestamp.signed.expires = later()
        timestamp.sign(self.key("timestamp"))
        found[topics.metadata("timestamp.json")] = encode_metadata(timestamp)
        return found
