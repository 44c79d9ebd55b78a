"""A fleet server's REST interface in memory, on a real socket, with real TUF metadata.

It signs snapshot and timestamp as the server does, and can be told to misbehave.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlparse

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from edgewise_cli.__main__ import run
from edgewise_protocol.bundle import file_entry, write_bundle
from edgewise_protocol.manifest import Golden, Manifest, Numerics, Proof, Requirements, TensorSpec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

Answer = tuple[int, bytes]


@dataclass
class FleetSimulator:
    """The server's state; `serve` answers one request."""

    snapshot_signer: CryptoSigner = field(default_factory=CryptoSigner.generate_ed25519)
    timestamp_signer: CryptoSigner = field(default_factory=CryptoSigner.generate_ed25519)
    director_signer: CryptoSigner = field(default_factory=CryptoSigner.generate_ed25519)
    metadata: dict[str, bytes] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    attestations: dict[str, Any] = field(default_factory=dict)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    offers: dict[str, bytes] = field(default_factory=dict)
    answers: dict[tuple[str, str], Any] = field(default_factory=dict)
    """Other answers by (method, path): a document, or (status, document)."""
    tamper: Callable[[str, bytes], bytes] = lambda _name, data: data
    asked: list[tuple[str, str]] = field(default_factory=list)
    bodies: dict[tuple[str, str], Any] = field(default_factory=dict)
    token: str = "ew_test"
    generation: int = 0

    def online(self) -> dict[str, Any]:
        """`online.json`."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "asked for")])
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        keys = {
            "snapshot": self.snapshot_signer.public_key,
            "timestamp": self.timestamp_signer.public_key,
            "director": self.director_signer.public_key,
        }
        return {
            **{role: key.to_dict() for role, key in keys.items()},
            "keyids": {role: key.keyid for role, key in keys.items()},
            "intermediate_csr_pem": csr.public_bytes(Encoding.PEM).decode(),
        }

    def put_role(self, role: str, data: bytes) -> None:
        """Take a role's metadata, and sign a new snapshot and timestamp."""
        version = Metadata.from_bytes(data).signed.version
        self.metadata[f"{version}.{quote(role, safe='')}.json"] = data
        self.versions[role] = version
        if role == "root":
            return
        self.generation += 1
        soon = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
        meta = {f"{r}.json": MetaFile(v) for r, v in self.versions.items() if r != "root"}
        if "targets.json" not in meta:
            return
        snapshot = Metadata(Snapshot(version=self.generation, expires=soon, meta=meta))
        snapshot.sign(self.snapshot_signer)
        timestamp = Metadata(Timestamp(version=self.generation, expires=soon, snapshot_meta=MetaFile(self.generation)))
        timestamp.sign(self.timestamp_signer)
        self.metadata[f"{self.generation}.snapshot.json"] = snapshot.to_bytes()
        self.metadata["timestamp.json"] = timestamp.to_bytes()

    def serve(self, method: str, target: str, body: bytes) -> Answer:
        path = urlparse(target).path.removeprefix("/api/v1")
        self.asked.append((method, path))
        self.bodies[(method, path)] = body
        parts = [unquote(p) for p in path.strip("/").split("/")]
        if (method, path) in self.answers:
            found = self.answers[(method, path)]
            status, document = found if isinstance(found, tuple) else (200, found)
            return status, json.dumps(document).encode()
        if path == "/trust":
            return self._trust(method, body)
        if path == "/status":
            return 200, json.dumps({"version": "0", "trust": {"installed": bool(self.versions)}}).encode()
        if parts[0] == "metadata":
            return self._metadata(method, parts[1:], body)
        if parts[0] == "blobs":
            return self._blob(method, parts[1], body)
        if path == "/attestations":
            document = json.loads(body)
            self.attestations[document["bundle_sha256"]] = document["envelope"]
            return 201, b"{}"
        if parts[0] == "jobs":
            return self._job(parts[1:], body)
        if parts[0] == "federations" and parts[-1] == "offer":
            self.offers[path] = body
            return 200, b"{}"
        return problem(404, "not-found", f"nothing is at {path}")

    def _trust(self, method: str, body: bytes) -> Answer:
        if method == "PUT":
            document = json.loads(body)
            roles = {"root": document["root"], "targets": document["targets"], **document["delegated"]}
            for role, value in roles.items():
                self.put_role(role, json.dumps(value).encode())
        if not self.versions:
            return problem(409, "trust-missing", "no trust is installed yet")
        roles_now = {role: {"version": v} for role, v in self.versions.items()}
        return 200, json.dumps({"installed": bool(self.versions), "roles": roles_now}).encode()

    def _metadata(self, method: str, parts: list[str], body: bytes) -> Answer:
        if method == "PUT":
            self.put_role("/".join(parts[1:]) if parts[0] == "delegated" else parts[0], body)
            return 200, b"{}"
        data = self.metadata.get(parts[0])
        if data is None:
            return problem(404, "not-found", f"no {parts[0]}")
        return 200, self.tamper(parts[0], data)

    def _blob(self, method: str, sha256: str, body: bytes) -> Answer:
        if method == "PUT":
            assert hashlib.sha256(body).hexdigest() == sha256
            self.blobs[sha256] = body
            return 201, b"{}"
        if sha256 not in self.blobs:
            return problem(404, "not-found", "no such blob")
        return 200, self.tamper(sha256, self.blobs[sha256])

    def _job(self, parts: list[str], body: bytes) -> Answer:
        if parts == ["claim"]:
            return (200, json.dumps(self.jobs.pop(0)).encode()) if self.jobs else (204, b"")
        if parts[1] in ("finish", "fail"):
            self.ended[parts[0]] = {"how": parts[1], **json.loads(body)}
        return 200, b"{}"


def problem(status: int, code: str, detail: str) -> Answer:
    return status, json.dumps({"code": code, "detail": detail, "status": status}).encode()


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FleetSimulator]:
    """A running simulator that the command line is configured for."""
    simulator = FleetSimulator()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {simulator.token}":
                status, data = problem(401, "unauthenticated", "the token is not known")
            else:
                status, data = simulator.serve(self.command, self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

        def log_message(self, format: str, *args: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("EDGEWISE_SERVER", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("EDGEWISE_TOKEN", simulator.token)
    monkeypatch.setenv("EDGEWISE_CONFIG", str(tmp_path / "no-config.toml"))
    yield simulator
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def edgewise(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run `edgewise` in this process."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("EDGEWISE_KEY_PASSPHRASE", raising=False)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        status = run([str(a) for a in arguments])
        found = capsys.readouterr()
        return Outcome(status, found.out, found.err)

    return call


@pytest.fixture
def keys(fleet: FleetSimulator, edgewise: Callable[..., Outcome], tmp_path: Path) -> Path:
    """Keys of a fleet with the channels `lab` (opted in) and `production`; the trust is installed."""
    folder = tmp_path / "keys"
    online = tmp_path / "online.json"
    online.write_text(json.dumps(fleet.online()))
    made = edgewise("keys", "init", folder, "--online", online, "--channel", "lab:auto", "--channel", "production")
    assert made.status == 0, made.err
    installed = edgewise("trust", "install", folder)
    assert installed.status == 0, installed.err
    return folder


def make_bundle(
    folder: Path,
    *,
    model: str = "digits",
    version: int = 1,
    profile: str = "x86-64",
    body: bytes = b"m",
    machine: str = "",
    proofs: tuple[Proof, ...] = (),
) -> Path:
    """A well-formed inference bundle whose model file is `body`."""
    digest = hashlib.sha256(body).hexdigest()
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model.onnx", "digest": {"sha256": digest}}],
        "predicateType": "https://edgewise.dev/conversion/v1",
        "predicate": {"run": "r"},
    }
    files = {"model.onnx": body, "golden.safetensors": b"g", "provenance.json": json.dumps(statement).encode()}
    spec = TensorSpec(name="x", dtype="FP32", shape=(-1, 4))
    manifest = Manifest(
        spec_version="1.0",
        kind="inference",
        model=model,
        version=version,
        profile=profile,
        requires=Requirements(engine="onnxruntime", compatible=(profile,), machine=machine),
        files=tuple(file_entry(name, data) for name, data in sorted(files.items())),
        inputs=(spec,),
        outputs=(spec,),
        model_file="model.onnx",
        golden=Golden(file="golden.safetensors", samples=1, atol=0.1, rtol=0.1),
        provenance_file="provenance.json",
        numerics=Numerics(proofs=proofs),
    )
    out = io.BytesIO()
    write_bundle(out, manifest, files)
    path = folder / f"{model}-{version}-{profile}.ewb"
    path.write_bytes(out.getvalue())
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path)


@pytest.fixture
def bundle_maker(tmp_path: Path) -> Callable[..., Path]:
    return lambda **options: make_bundle(tmp_path, **options)


def trusted_targets(fleet: FleetSimulator) -> Targets:
    """The targets metadata that the simulator serves."""
    found = Metadata.from_bytes(fleet.metadata[f"{fleet.versions['targets']}.targets.json"]).signed
    assert isinstance(found, Targets)
    return found
