"""A fleet in memory for the agent's tests: a TUF repository, a certificate authority, and a server's voice on MQTT.

Everything that it makes is real (python-tuf metadata, signed with Ed25519, ONNX models, X.509);
only the server's decisions are the test's.
"""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import numpy as np
import onnx
import paho.mqtt.client as mqtt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from edgewise_protocol import topics
from edgewise_protocol.assignment import AssignmentBody, build_assignment
from edgewise_protocol.bundle import file_entry, write_bundle
from edgewise_protocol.chunks import build_index, iter_chunks
from edgewise_protocol.features import build_baseline
from edgewise_protocol.manifest import Budget, Golden, Manifest, Requirements, TensorSpec
from edgewise_protocol.messages import Ack, Drift, Event, Reported, Status, Telemetry, Want, decode, encode
from edgewise_protocol.metadata import encode_metadata
from edgewise_protocol.sketches import encode_baseline
from edgewise_protocol.targets import SignedFile, auto_role, bundle_path, custom_for, to_target_file
from onnx import TensorProto, helper, numpy_helper
from paho.mqtt.enums import CallbackAPIVersion
from safetensors.numpy import save
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

CHANNEL = "lab"
MODEL = "tiny"
BOARD = "test-board"


def in_days(days: float) -> datetime:
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)


# -- bundles -----------------------------------------------------------------------------------


def weights_of(version: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(version)
    return rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)


def logits_of(version: int, x: np.ndarray) -> np.ndarray:
    """What version `version` of the tiny model answers, computed by numpy."""
    w, b = weights_of(version)
    return x @ w + b


def onnx_model(version: int, padding: int = 0) -> bytes:
    w, b = weights_of(version)
    initializers = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")]
    if padding:
        noise = np.random.default_rng(version).integers(0, 255, padding).astype(np.uint8)
        initializers.append(numpy_helper.from_array(noise, "padding"))
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["logits"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def endless_model() -> bytes:
    """A model that computes for ever: a loop without an end around its output."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Gemm", ["x", "w", "b"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("last", TensorProto.FLOAT, ["n", 3]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["n", 3]),
        ],
    )
    w, b = weights_of(1)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["first"]),
            helper.make_node("Loop", ["", "true", "first"], ["logits"], body=body),
        ],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [
            numpy_helper.from_array(w, "w"),
            numpy_helper.from_array(b, "b"),
            numpy_helper.from_array(np.array(True), "true"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def make_bundle(
    version: int,
    *,
    wrong_golden: bool = False,
    padding: int = 0,
    board: str = BOARD,
    model_bytes: bytes | None = None,
    budget: Budget | None = None,
    channel: str = CHANNEL,
    path_version: int | None = None,
    model: str = MODEL,
) -> tuple[SignedFile, bytes]:
    """A real bundle of the tiny model, and what a role would sign for it."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(16, 4)).astype(np.float32)
    y = logits_of(version + (1000 if wrong_golden else 0), x)
    files = {
        "model.onnx": onnx_model(version, padding) if model_bytes is None else model_bytes,
        "golden.safetensors": save({"input.x": x, "output.logits": y}),
        "baseline.json": encode_baseline(build_baseline(x, y, "classification", kll=False)),
    }
    manifest = Manifest(
        spec_version="1.0",
        kind="inference",
        model=model,
        version=version,
        profile=board,
        requires=Requirements(engine="onnxruntime", compatible=(board,)),
        files=tuple(file_entry(name, data) for name, data in files.items()),
        task="classification",
        inputs=(TensorSpec(name="x", dtype="FP32", shape=(-1, 4)),),
        outputs=(TensorSpec(name="logits", dtype="FP32", shape=(-1, 3)),),
        model_file="model.onnx",
        golden=Golden(file="golden.safetensors", samples=16, atol=1e-4, rtol=1e-4),
        baseline_file="baseline.json",
        budget=budget or Budget(),
    )
    out = io.BytesIO()
    write_bundle(out, manifest, files)
    data = out.getvalue()
    return sign_as(manifest, data, bundle_path(channel, model, board, path_version or version)), data


def sign_as(manifest: Manifest, data: bytes, path: str) -> SignedFile:
    index = build_index(io.BytesIO(data))
    custom = custom_for(manifest, hashlib.sha256(index).hexdigest())
    return SignedFile(path=path, length=len(data), sha256=hashlib.sha256(data).hexdigest(), custom=custom)


# -- identities --------------------------------------------------------------------------------


class Authority:
    """A fleet root and an intermediate that issues device certificates."""

    def __init__(self) -> None:
        self.root_key, self.key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        self.root = self._issue("root", self.root_key.public_key(), "root", self.root_key, True)
        self.intermediate = self._issue("intermediate", self.key.public_key(), "root", self.root_key, True)

    def replace_intermediate(self) -> None:
        """Another intermediate under the same root, as after a theft."""
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.intermediate = self._issue("intermediate", self.key.public_key(), "root", self.root_key, True)

    def issue(self, csr_pem: str, device_id: str, days: float = 30) -> str:
        """A chain for a CSR, whose subject is ignored."""
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        leaf = self._issue(device_id, csr.public_key(), "intermediate", self.key, False, days)
        return _pem(leaf) + _pem(self.intermediate)

    @property
    def root_pem(self) -> str:
        return _pem(self.root)

    @staticmethod
    def _issue(name: str, public: Any, issuer: str, signer: Any, ca: bool, days: float = 30) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, now + timedelta(days=days)) - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(signer, hashes.SHA256())
        )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


# -- the repository ----------------------------------------------------------------------------


class Repository:
    """A TUF repository with a director, the rounds role and one delegated channel role."""

    def __init__(self) -> None:
        names = ["root", "targets", "snapshot", "timestamp", "director", "rounds", "offers", auto_role(CHANNEL)]
        self.signers = {name: CryptoSigner.generate_ed25519() for name in names}
        root = Root(expires=in_days(365), consistent_snapshot=True)
        for name in ("root", "targets", "snapshot", "timestamp"):
            root.add_key(self.signers[name].public_key, name)
        delegations = Delegations({}, {})
        targets = Targets(expires=in_days(90))
        targets.delegations = delegations
        for name, paths in (
            ("director", ["dev/*"]),
            ("rounds", ["rounds/*/*/*"]),
            ("offers", []),
            (auto_role(CHANNEL), [f"{CHANNEL}/*/*/*"]),
        ):
            assert delegations.roles is not None
            delegations.roles[name] = DelegatedRole(name, [], 1, False, paths)
            targets.add_key(self.signers[name].public_key, name)
        self.root = Metadata(root)
        self.targets = Metadata(targets)
        self.auto = Metadata(Targets(expires=in_days(90)))
        self.snapshot = Metadata(Snapshot(expires=in_days(7)))
        self.timestamp = Metadata(Timestamp(expires=in_days(1)))
        self.root.sign(self.signers["root"])

    def copy(self) -> Repository:
        """The same keys and metadata, to go its own way from here."""
        found = object.__new__(Repository)
        found.signers = dict(self.signers)
        for name in ("root", "targets", "auto", "snapshot", "timestamp"):
            setattr(found, name, Metadata.from_bytes(getattr(self, name).to_bytes()))
        return found

    @property
    def root_bytes(self) -> bytes:
        return encode_metadata(self.root)

    def add(self, file: SignedFile, *, by_worker: bool = False) -> None:
        role = self.auto if by_worker else self.targets
        role.signed.targets[file.path] = to_target_file(file)

    def files(self) -> dict[str, bytes]:
        """Signs the next version of everything; role file to bytes, the timestamp last."""
        found: dict[str, bytes] = {f"{self.root.signed.version}.root.json": self.root_bytes}
        for name, role in (("targets", self.targets), (auto_role(CHANNEL), self.auto)):
            role.signed.version += 1
            role.sign(self.signers[name])
            self.snapshot.signed.meta[f"{name}.json"] = MetaFile(version=role.signed.version)
            found[f"{role.signed.version}.{quote(name, '')}.json"] = encode_metadata(role)
        self.snapshot.signed.version += 1
        self.snapshot.sign(self.signers["snapshot"])
        found[f"{self.snapshot.signed.version}.snapshot.json"] = encode_metadata(self.snapshot)
        found["timestamp.json"] = self.next_timestamp()
        return found

    def next_timestamp(self) -> bytes:
        self.timestamp.signed.version += 1
        self.timestamp.signed.snapshot_meta.version = self.snapshot.signed.version
        self.timestamp.sign(self.signers["timestamp"])
        return encode_metadata(self.timestamp)

    def assignment(
        self,
        device: str,
        bundles: tuple[SignedFile, ...],
        version: int,
        *,
        days: float = 7,
        signer: str = "director",
        confirm_within_s: int = 600,
        channel: str = CHANNEL,
        deployment: str = "rollout-1",
    ) -> bytes:
        body = AssignmentBody(device=device, channel=channel, confirm_within_s=confirm_within_s, deployment=deployment)
        metadata = build_assignment(body, bundles, version=version, expires=in_days(days))
        if signer:
            metadata.sign(self.signers[signer])
        return encode_metadata(metadata)


# -- the server's voice ------------------------------------------------------------------------


class FleetVoice:
    """Publishes as the server does, keeps what devices say, and acknowledges the outbox.

    Args:
        port: the broker's.
        device: the one device that is listened to.
    """

    def __init__(self, port: int, device: str) -> None:
        self.device = device
        self.repository = Repository()
        self.heard: list[tuple[str, Any]] = []
        self.blobs: dict[str, list[bytes]] = {}
        self.answer_wants = True
        self.acknowledge = True
        self._change = threading.Condition()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.on_message = self._message
        self._client.on_connect = lambda client, *_: client.subscribe(f"ew/1/dev/{device}/+", qos=1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes, *, retain: bool = True) -> None:
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(5)

    def publish_metadata(self) -> None:
        self.publish(topics.SENTINEL, b"1")
        for name, data in self.repository.files().items():
            self.publish(topics.metadata(name), data)

    def publish_blob(self, data: bytes, *, retain: bool = True) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs[sha256] = list(iter_chunks(io.BytesIO(data)))
        if retain:
            for n, chunk in enumerate(self.blobs[sha256]):
                self.publish(topics.blob(sha256, n), chunk)
        return sha256

    def release(self, file: SignedFile, data: bytes, *, by_worker: bool = False, retain: bool = True) -> None:
        """Sign and publish a bundle: chunks, index, metadata."""
        self.publish_blob(data, retain=retain)
        self.publish_blob(build_index(io.BytesIO(data)), retain=retain)
        self.repository.add(file, by_worker=by_worker)
        self.publish_metadata()

    def assign(self, bundles: tuple[SignedFile, ...], version: int, **how: Any) -> None:
        device = how.pop("device", self.device)
        self.send_assignment(self.repository.assignment(device, bundles, version, **how))

    def send_assignment(self, data: bytes) -> None:
        self.publish(topics.device(self.device, "assignment"), data)

    # -- listening -------------------------------------------------------------------------

    def _message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        leaf = message.topic.rsplit("/", 1)[1]
        kinds: dict[str, Any] = {
            "reported": Reported, "event": Event, "status": Status, "want": Want, "telemetry": Telemetry,
        }  # fmt: skip
        if leaf == "drift":
            found: Any = decode(Drift, message.payload, 1 << 20)
        elif leaf in kinds:
            found = decode(kinds[leaf], message.payload)
        else:
            return
        with self._change:
            self.heard.append((leaf, found))
            self._change.notify_all()
        if leaf in ("event", "telemetry", "drift") and self.acknowledge:
            ack = Ack(stream=found.stream, through=found.seq)
            self._client.publish(topics.device(self.device, "ack"), encode(ack), qos=1)
        if leaf == "want" and self.answer_wants:
            for blob in found.blobs:
                for n in blob.chunks:
                    if blob.sha256 in self.blobs:
                        topic = topics.blob(blob.sha256, n)
                        self._client.publish(topic, self.blobs[blob.sha256][n], qos=1, retain=True)

    def wait(self, leaf: str, wanted: Callable[[Any], bool], what: str, timeout: float = 20.0) -> Any:
        """The first message, since the beginning, that is wanted."""
        deadline = time.monotonic() + timeout
        with self._change:
            while True:
                for heard, message in self.heard:
                    if heard == leaf and wanted(message):
                        return message
                left = deadline - time.monotonic()
                if left <= 0:
                    said = "\n".join(f"  {k}: {m}" for k, m in self.heard[-12:])
                    raise AssertionError(f"waited {timeout} s for {what}; the device said\n{said}")
                self._change.wait(left)

    def wait_model(self, state: str, version: int, **fields: Any) -> Any:
        """A report in which the tiny model is in this state for this target version."""

        def wanted(report: Reported) -> bool:
            return any(
                m.model == MODEL
                and m.state == state
                and m.target_version == version
                and all(getattr(m, name) == value for name, value in fields.items())
                for m in report.models
            )

        report = self.wait("reported", wanted, f"state {state} of version {version} {fields}")
        return next(m for m in report.models if m.model == MODEL)

    def wait_refusal(self, code: str) -> Any:
        """A report that names this code as the reason of a refused assignment."""
        return self.wait("reported", lambda r: r.error_code == code, f"the refusal {code}")

    def wait_security(self, code: str) -> Any:
        return self.wait("event", lambda e: e.kind == "security" and e.code == code, f"a security event {code}")

    def forget(self) -> None:
        """Let `wait` see only what comes from now on."""
        with self._change:
            self.heard.clear()
