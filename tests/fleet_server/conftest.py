"""Shared parts of the server's tests: a ceremony with offline keys, real bundles, a running app, both databases."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import numpy as np
import psycopg
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from edgewise_protocol.bundle import file_entry, write_bundle
from edgewise_protocol.chunks import build_index
from edgewise_protocol.manifest import Golden, Manifest, Requirements, TensorSpec, TrainingSpec
from edgewise_protocol.targets import (
    CUSTOM_KEY,
    DIRECTOR,
    OFFERS,
    SignedFile,
    bundle_path,
    custom_for,
    to_target_file,
    training_path,
)
from edgewise_server.app import create_app
from edgewise_server.context import KEYS_FOLDER, Context, online_description, open_context
from edgewise_server.db import Database
from edgewise_server.models.outgoing import Outgoing
from edgewise_server.pki.authority import create_authority
from edgewise_server.schema import upgrade
from edgewise_server.services import attestations, blobs, tokens
from edgewise_server.settings import load_settings
from edgewise_server.trust.keys import create_keys
from safetensors.numpy import save
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey
from sqlmodel import col, select
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, Targets
from tuf.api.serialization.json import JSONSerializer

NOW = datetime.now(UTC).replace(microsecond=0)
PROVENANCE = "provenance.json"


def expiring(days: float) -> datetime:
    return NOW + timedelta(days=days)


def to_bytes(metadata: Metadata[Any]) -> bytes:
    return metadata.to_bytes(JSONSerializer(compact=True))


@dataclass
class OfflineKeys:
    """What an operator and a worker hold: root, targets, delegated roles, the CA root."""

    root: list[CryptoSigner] = field(default_factory=lambda: [CryptoSigner.generate_ed25519() for _ in range(3)])
    targets: list[CryptoSigner] = field(default_factory=lambda: [CryptoSigner.generate_ed25519() for _ in range(2)])
    delegated: dict[str, CryptoSigner] = field(default_factory=dict)
    ca_key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))


class Ceremony:
    """Makes and signs the offline metadata of one fleet, step by step."""

    def __init__(self, online: dict[str, Any], auto_channels: tuple[str, ...] = ("lab",)) -> None:
        self.keys = OfflineKeys()
        self.online = {
            role: SSlibKey.from_dict(online["keyids"][role], dict(online[role]))
            for role in ("snapshot", "timestamp", "director")
        }
        self.csr_pem: str = online["intermediate_csr_pem"]
        self.roles = {"rounds": ["rounds/*/*/*"], OFFERS: []} | {f"auto/{c}": [f"{c}/*/*/*"] for c in auto_channels}
        self.keys.delegated = {role: CryptoSigner.generate_ed25519() for role in self.roles}
        self.root = self._root()
        self.targets = self._targets()
        with_metadata = [role for role in self.roles if role != OFFERS]
        self.delegated = {role: Metadata(Targets(version=1, expires=expiring(90))) for role in with_metadata}
        self.sign_all()

    def _root(self) -> Metadata[Root]:
        root = Root(version=1, expires=expiring(365), consistent_snapshot=True)
        for signer in self.keys.root:
            root.add_key(signer.public_key, "root")
        for signer in self.keys.targets:
            root.add_key(signer.public_key, "targets")
        root.roles["root"].threshold = 2
        for role in ("snapshot", "timestamp"):
            root.add_key(self.online[role], role)
        return Metadata(root)

    def _targets(self) -> Metadata[Targets]:
        director = self.online["director"]
        keys = {director.keyid: director}
        roles = {DIRECTOR: DelegatedRole(DIRECTOR, [director.keyid], 1, False, paths=["dev/*"])}
        for role, paths in self.roles.items():
            key = self.keys.delegated[role].public_key
            keys[key.keyid] = key
            roles[role] = DelegatedRole(role, [key.keyid], 1, False, paths=paths)
        return Metadata(Targets(version=1, expires=expiring(90), delegations=Delegations(keys, roles)))

    def sign_all(self) -> None:
        self.sign_root()
        self.sign_targets()
        for role in self.delegated:
            self.sign_delegated(role)

    def sign_root(self, signers: int = 2) -> bytes:
        self.root.signatures.clear()
        for signer in self.keys.root[:signers]:
            self.root.sign(signer, append=True)
        return to_bytes(self.root)

    def sign_targets(self, signers: int = 1) -> bytes:
        self.targets.signatures.clear()
        for signer in self.keys.targets[:signers]:
            self.targets.sign(signer, append=True)
        return to_bytes(self.targets)

    def sign_delegated(self, role: str) -> bytes:
        self.delegated[role].sign(self.keys.delegated[role])
        return to_bytes(self.delegated[role])

    def next_targets(self, *files: SignedFile, floors: dict[str, int] | None = None) -> bytes:
        """The next version of the top-level targets metadata, with more files."""
        self.targets.signed.version += 1
        for file in files:
            self.targets.signed.targets[file.path] = to_target_file(file)
        if floors is not None:
            self.targets.signed.unrecognized_fields[CUSTOM_KEY] = {"floors": floors}
        return self.sign_targets()

    def next_delegated(self, role: str, *files: SignedFile) -> bytes:
        """The next version of a delegated role's metadata, with more files."""
        self.delegated[role].signed.version += 1
        for file in files:
            self.delegated[role].signed.targets[file.path] = to_target_file(file)
        return self.sign_delegated(role)

    def fleet_ca(self, key: ec.EllipticCurvePrivateKey | None = None) -> tuple[str, str]:
        """PEM of the CA root and of the intermediate that it issues for the server's CSR."""
        signing = key or self.keys.ca_key
        root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test fleet root")])
        csr = x509.load_pem_x509_csr(self.csr_pem.encode())
        root = self._ca(root_name, root_name, signing.public_key(), signing)
        return root, self._ca(csr.subject, root_name, csr.public_key(), signing)

    def _ca(self, subject: x509.Name, issuer: x509.Name, public: Any, key: ec.EllipticCurvePrivateKey) -> str:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(hours=1))
            .not_valid_after(NOW + timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        )
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    def document(self) -> dict[str, Any]:
        """`ceremony.json`."""
        root_pem, intermediate_pem = self.fleet_ca()
        return {
            "root": json.loads(to_bytes(self.root)),
            "targets": json.loads(to_bytes(self.targets)),
            "delegated": {role: json.loads(to_bytes(metadata)) for role, metadata in self.delegated.items()},
            "fleet_ca_pem": root_pem,
            "intermediate_pem": intermediate_pem,
        }

    def signer_of(self, role: str) -> CryptoSigner:
        return self.keys.targets[0] if role == "targets" else self.keys.delegated[role]


@dataclass(frozen=True)
class MadeBundle:
    """A bundle's bytes and the signed file that stands for it."""

    data: bytes
    file: SignedFile
    provenance: bytes

    def envelope(self, signer: CryptoSigner, payload: bytes | None = None) -> dict[str, Any]:
        made = Envelope(payload or self.provenance, "application/vnd.in-toto+json", {})
        made.sign(signer)
        return made.to_dict()


def make_bundle(
    model: str = "digits",
    version: int = 1,
    profile: str = "raspberry-pi-4-64",
    *,
    channel: str = "lab",
    engine: str = "onnxruntime",
    compatible: tuple[str, ...] | None = None,
    size: int = 300_000,
    provenance: bytes | None = None,
) -> MadeBundle:
    """A small but whole inference bundle; `size` bytes of model, so that it has several chunks."""
    weights = hashlib.shake_256(f"{model}/{version}/{profile}".encode()).digest(size)
    if provenance is None:
        statement = {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": "model.onnx", "digest": {"sha256": hashlib.sha256(weights).hexdigest()}}],
            "predicateType": "https://edgewise.example/conversion/v1",
            "predicate": {"run": "run-1", "accuracy": 0.98},
        }
        provenance = json.dumps(statement, sort_keys=True).encode()
    golden = save({"input.x": np.zeros((2, 4), np.float32), "output.logits": np.zeros((2, 3), np.float32)})
    files = {"model.onnx": weights, "golden.safetensors": golden, PROVENANCE: provenance}
    manifest = Manifest(
        spec_version="1.0",
        kind="inference",
        model=model,
        version=version,
        profile=profile,
        requires=Requirements(engine=engine, compatible=compatible if compatible is not None else (profile,)),
        files=tuple(file_entry(name, data) for name, data in sorted(files.items())),
        task="classification",
        inputs=(TensorSpec(name="x", dtype="FP32", shape=(-1, 4)),),
        outputs=(TensorSpec(name="logits", dtype="FP32", shape=(-1, 3)),),
        model_file="model.onnx",
        golden=Golden(file="golden.safetensors", samples=2, atol=1e-4, rtol=1e-4),
        provenance_file=PROVENANCE,
        lineage={
            "run": "run-1",
            "data_fingerprint": "f" * 64,
            "profile_sha256": hashlib.sha256(profile.encode()).hexdigest(),
        },
        metrics={"accuracy": 0.98},
    )
    return _made(manifest, files, bundle_path(channel, model, profile, version), provenance)


def make_training_bundle(model: str = "digits", version: int = 1, *, channel: str = "lab") -> MadeBundle:
    files = {"step.onnx": b"graph", "initial.safetensors": save({"p.w": np.zeros(3, np.float32)})}
    tensor = TensorSpec(name="x", dtype="FP32", shape=(-1, 4))
    manifest = Manifest(
        spec_version="1.0",
        kind="training",
        model=model,
        version=version,
        profile="any",
        requires=Requirements(engine="onnxruntime"),
        files=tuple(file_entry(name, data) for name, data in sorted(files.items())),
        training=TrainingSpec(
            step_file="step.onnx",
            initial_file="initial.safetensors",
            x=tensor,
            y=TensorSpec(name="y", dtype="INT64", shape=(-1,)),
            params=(TensorSpec(name="w", dtype="FP32", shape=(3,)),),
        ),
    )
    return _made(manifest, files, training_path(channel, model, version), b"")


def _made(manifest: Manifest, files: dict[str, bytes], path: str, provenance: bytes) -> MadeBundle:
    out = io.BytesIO()
    write_bundle(out, manifest, files)
    data = out.getvalue()
    index = hashlib.sha256(build_index(io.BytesIO(data))).hexdigest()
    file = SignedFile(
        path=path, length=len(data), sha256=hashlib.sha256(data).hexdigest(), custom=custom_for(manifest, index)
    )
    return MadeBundle(data, file, provenance)


def changed(file: SignedFile, **values: Any) -> SignedFile:
    """A signed file with some fields, or fields of its custom, replaced."""
    custom = {k: v for k, v in values.items() if k in file.custom.__struct_fields__}
    rest = {k: v for k, v in values.items() if k not in custom}
    return msgspec.structs.replace(file, custom=msgspec.structs.replace(file.custom, **custom), **rest)


@functools.cache
def _migrated() -> bytes:
    """An empty database at the newest revision; migrating one for every test would take most of the time."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/empty.db")
        upgrade(database)
        database.close()
        return Path(folder, "empty.db").read_bytes()


# -- PostgreSQL -------------------------------------------------------------------------------


class Cluster:
    """A PostgreSQL server on which databases may be made: the one that is named, or one of our own for this run."""

    def __init__(self) -> None:
        self.folder = ""
        self.admin = os.environ.get("EDGEWISE_TEST_POSTGRES", "")
        self._template = ""
        self._made: list[str] = []
        if not self.admin:
            self._start()

    def _start(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="ew-pg-")
        # PostgreSQL refuses to run as root
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self.folder, self._user)
        self._command("initdb", "-D", f"{self.folder}/data", "-U", "edgewise", "-A", "trust", "--no-sync", "-E", "UTF8")
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off -c full_page_writes=off -c max_connections=200"
        self._command("pg_ctl", "-D", f"{self.folder}/data", "-w", "-l", f"{self.folder}/log", "-o", options, "start")
        self.admin = f"postgresql://edgewise@/postgres?host={self.folder}"

    def _command(self, *words: str) -> None:
        done = subprocess.run(words, user=self._user, cwd=self.folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def url(self, name: str) -> str:
        return self.admin.replace("postgresql://", "postgresql+psycopg://").replace("/postgres", f"/{name}")

    def make(self, template: str = "template1") -> str:
        """Make a database; its URL. `drop_made` takes it away again."""
        name = f"edgewise_{os.getpid()}_{secrets.token_hex(4)}"
        with psycopg.connect(self.admin, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        self._made.append(name)
        return self.url(name)

    def make_migrated(self) -> str:
        """Make an empty database at the newest revision: a copy of one that was migrated once."""
        if not self._template:
            url = self.make()
            self._template = self._made.pop()
            database = Database(url)
            upgrade(database)
            database.close()
        return self.make(self._template)

    def drop_made(self) -> None:
        names, self._made = self._made, []
        if names:
            with psycopg.connect(self.admin, autocommit=True) as connection:
                for name in names:
                    connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def close(self) -> None:
        self.drop_made()
        if self._template:
            self._made = [self._template]
            self.drop_made()
        if self.folder:
            self._command("pg_ctl", "-D", f"{self.folder}/data", "-w", "-m", "immediate", "stop")
            shutil.rmtree(self.folder, ignore_errors=True)


ON_POSTGRES = os.environ.get("EDGEWISE_TEST_DATABASE", "sqlite") == "postgresql"
"""Whether every test runs on PostgreSQL, not only those that ask for both databases."""
_CLUSTERS: list[Cluster] = []


def cluster() -> Cluster:
    """The run's cluster; made once."""
    if not _CLUSTERS:
        _CLUSTERS.append(Cluster())
    return _CLUSTERS[0]


@pytest.fixture(scope="session", autouse=True)
def end_cluster() -> Iterator[None]:
    yield
    while _CLUSTERS:
        _CLUSTERS.pop().close()


@pytest.fixture(autouse=True)
def drop_databases() -> Iterator[None]:
    """What a test has made is gone after it; its contexts are closed by then."""
    yield
    if _CLUSTERS:
        _CLUSTERS[0].drop_made()


@pytest.fixture
def postgres() -> Cluster:
    """A PostgreSQL server; skips where there is none."""
    if not os.environ.get("EDGEWISE_TEST_POSTGRES") and not (shutil.which("initdb") and shutil.which("pg_ctl")):
        pytest.skip("no PostgreSQL: set EDGEWISE_TEST_POSTGRES or install it")
    return cluster()


@pytest.fixture(params=["sqlite", "postgresql"])
def both_databases(request: pytest.FixtureRequest) -> Callable[[Path], str]:
    """Makes an empty database, given a folder; returns its URL. For tests that run on both whatever is asked."""
    if request.param == "postgresql":
        found: Cluster = request.getfixturevalue("postgres")
        return lambda _: found.make()
    return lambda folder: f"sqlite:///{folder / 'test.db'}"


@pytest.fixture
def server_env() -> dict[str, str]:
    """Environment of a server's own process, which then runs on the database that this run is about."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGEWISE_SERVER_")}
    return kept | ({"EDGEWISE_SERVER_DATABASE_URL": cluster().make()} if ON_POSTGRES else {})


def make_state(folder: Path, database_url: str | None = None, **overrides: object) -> Context:
    """An initialized state folder, opened; the caller closes the context. Its database is the one this run is about."""
    if database_url is None and ON_POSTGRES:
        database_url = cluster().make_migrated()
    settings = load_settings(folder, database_url=database_url, **overrides)
    create_keys(folder / KEYS_FOLDER)
    create_authority(folder / KEYS_FOLDER)
    if database_url is None:
        (folder / "server.db").write_bytes(_migrated())
    context = open_context(settings)
    if database_url is not None:
        upgrade(context.database)
    return context


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """A server's context, without trust."""
    opened = make_state(tmp_path / "state")
    yield opened
    opened.close()


@pytest.fixture
def ceremony(context: Context) -> Ceremony:
    """An offline ceremony for `context`, not installed."""
    return Ceremony(online_description(context.keys, context.authority))


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The functions above, for test modules."""
    return SimpleNamespace(
        NOW=NOW,
        expiring=expiring,
        to_bytes=to_bytes,
        Ceremony=Ceremony,
        make_bundle=make_bundle,
        make_training_bundle=make_training_bundle,
        changed=changed,
        make_state=make_state,
        publish=publish,
        outgoing_topics=outgoing_topics,
    )


@pytest.fixture
def trusted_context(context: Context, ceremony: Ceremony) -> Context:
    """A server's context with the ceremony installed."""
    context.repository.install(ceremony.document(), now=NOW, actor="test")
    return context


def publish(context: Context, ceremony: Ceremony, *bundles: MadeBundle, role: str = "targets") -> None:
    """Upload bundles, attest and sign them, through the services."""
    with context.database.session() as session:
        for bundle in bundles:
            blobs.add(session, context.blobs, bundle.data)
            if bundle.provenance:
                trusted = context.repository.current(session)
                envelope = bundle.envelope(ceremony.signer_of(role))
                attestations.submit(session, context.blobs, trusted, bundle.file.sha256, envelope)
    files = [bundle.file for bundle in bundles]
    data = ceremony.next_targets(*files) if role == "targets" else ceremony.next_delegated(role, *files)
    context.repository.upload(role, data, now=NOW, actor="test")


def outgoing_topics(context: Context) -> list[str]:
    """Live topics for the broker, in the order of publication."""
    with context.database.session(read_only=True) as session:
        statement = select(Outgoing.topic).where(~col(Outgoing.cleared)).order_by(col(Outgoing.id))
        return [topic.removeprefix("ew/1/") for topic in session.exec(statement)]


class LiveServer:
    """The API on a real socket, in a thread, without the roles beside it."""

    def __init__(self, context: Context) -> None:
        self.app = create_app(context)
        config = uvicorn.Config(self.app, host="127.0.0.1", port=0, log_config=None, lifespan="on")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline and self._thread.is_alive(), "the server does not start"
            time.sleep(0.005)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self._server.should_exit = True

    def join(self) -> None:
        self._thread.join(20)


@dataclass(frozen=True)
class Api:
    """HTTP clients by role, over one server."""

    url: str
    context: Context
    admin: httpx.Client
    operator: httpx.Client
    viewer: httpx.Client
    worker: httpx.Client
    nobody: httpx.Client


@pytest.fixture(scope="session")
def ended_servers() -> Iterator[list[LiveServer]]:
    """Servers that were told to stop: each takes a while, so that they are waited for together."""
    servers: list[LiveServer] = []
    yield servers
    for server in servers:
        server.join()


@pytest.fixture
def api(context: Context, ended_servers: list[LiveServer]) -> Iterator[Api]:
    """A running API over `context`, with a client for every role; plain HTTP, so no CA file is loaded."""
    server = LiveServer(context)
    with context.database.session() as session:
        made = {role: tokens.create(session, role, role)[1] for role in tokens.TOKEN_ROLES}
    base = f"{server.url}/api/v1"
    clients = {
        role: httpx.Client(base_url=base, headers={"Authorization": f"Bearer {secret}"}, timeout=30, verify=False)
        for role, secret in made.items()
    }
    clients["nobody"] = httpx.Client(base_url=base, timeout=30, verify=False)
    yield Api(url=base, context=context, **clients)
    for client in clients.values():
        client.close()
    server.stop()
    ended_servers.append(server)


@pytest.fixture
def trusted_api(api: Api, ceremony: Ceremony) -> Api:
    """A running API in which the ceremony has been installed over HTTP."""
    api.admin.put("/trust", json=ceremony.document()).raise_for_status()
    return api
