"""Danger: a worker that signs whatever the server asks for. The server may be in other hands."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edgewise_cli.client import Client
from edgewise_cli.config import Connection
from edgewise_cli.errors import CliError, RefusedError, TrustError
from edgewise_cli.keys.folder import KeyFolder
from edgewise_cli.trust.repository import Repository
from edgewise_cli.worker.context import WorkerContext
from edgewise_cli.worker.loop import Worker
from edgewise_cli.worker.promotion import check_request
from edgewise_cli.worker.promotion import parse_request as parse_promotion
from edgewise_cli.worker.signing import sign_offer
from edgewise_protocol.bundle import file_entry, write_bundle
from edgewise_protocol.chunks import build_index
from edgewise_protocol.manifest import Manifest, Requirements, TensorSpec, TrainingSpec
from edgewise_protocol.rounds import verify_offer
from edgewise_protocol.targets import SignedFile, TargetCustom, training_path, weights_path
from safetensors.numpy import save
from tuf.api.metadata import Metadata

SPEC = TrainingSpec(
    step_file="step.onnx",
    initial_file="initial.safetensors",
    x=TensorSpec(name="x", dtype="FP32", shape=(-1, 2)),
    y=TensorSpec(name="y", dtype="INT64", shape=(-1,)),
    params=(TensorSpec(name="w", dtype="FP32", shape=(2, 3)),),
    buffers=(TensorSpec(name="m", dtype="FP32", shape=(3,)),),
)


def _weights(**changes: Any) -> bytes:
    arrays = {"p.w": np.ones((2, 3), np.float32), "b.m": np.zeros(3, np.float32), **changes}
    return save({k: v for k, v in arrays.items() if v is not None})


def _training_bundle(path: Path) -> Path:
    files = {"step.onnx": b"graph", "initial.safetensors": _weights()}
    manifest = Manifest(
        spec_version="1.0",
        kind="training",
        model="digits",
        version=1,
        profile="any",
        requires=Requirements(engine="onnxruntime"),
        files=tuple(file_entry(n, d) for n, d in sorted(files.items())),
        training=SPEC,
    )
    with path.open("wb") as out:
        write_bundle(out, manifest, files)
    return path


@dataclass
class Bench:
    """A worker's context, and a well-formed job for it."""

    fleet: Any
    context: WorkerContext
    job: dict[str, Any]
    keys: Path

    def payload(self) -> dict[str, Any]:
        found = self.job["payload"]
        assert isinstance(found, dict)
        return found

    def use_weights(self, data: bytes, **custom: Any) -> None:
        """Put `data` in the job as the round's weights, consistently."""
        digest = hashlib.sha256(data).hexdigest()
        self.fleet.blobs[digest] = data
        index = hashlib.sha256(build_index(io.BytesIO(data))).hexdigest()
        fields = {"kind": "weights", "model": "digits", "version": 1, "chunk_index": index, **custom}
        file = SignedFile(
            path=weights_path("lab", "digits", "fed-1"),
            length=len(data),
            sha256=digest,
            custom=msgspec.convert(fields, TargetCustom),
        )
        self.payload()["weights"] = msgspec.to_builtins(file)


@pytest.fixture
def bench(keys: Path, fleet: Any, edgewise: Callable[..., Any], tmp_path: Path, monkeypatch: Any) -> Bench:
    bundle = _training_bundle(tmp_path / "training.ewb")
    signed = edgewise("sign", bundle, "--channel", "lab", "--keys", keys, "--out", tmp_path / "tr", "--json")
    assert signed.status == 0, signed.out
    assert signed.document["roles"] == {"rounds": {"version": 2, "have": 1, "threshold": 1}}
    assert edgewise("publish", tmp_path / "tr", "--keys", keys).status == 0
    import os

    folder = KeyFolder.load(keys / "worker")
    client = Client(Connection(os.environ["EDGEWISE_SERVER"], fleet.token))
    context = WorkerContext(
        client=client,
        keys=folder,
        repository=Repository(client, folder.path / "trusted", folder.root()),
        config=tmp_path / "none.toml",
        run=tmp_path / "none",
        out=tmp_path / "out",
        say=lambda _: None,
        stage=lambda _: None,
    )
    rounds = Metadata.from_bytes(fleet.metadata["2.rounds.json"]).signed
    target = rounds.targets[training_path("lab", "digits", 1)]
    training = {
        "path": target.path,
        "length": target.length,
        "sha256": target.hashes["sha256"],
        "custom": target.custom["edgewise"],
    }
    body = {"round_id": "fed-1", "federation": "fed", "number": 1, "channel": "lab", "model": "digits"}
    payload = {
        "federation": "fed",
        "number": 1,
        "round_id": "fed-1",
        "body": body,
        "training": training,
        "expires_at": (datetime.now(UTC) + timedelta(minutes=5)).timestamp(),
    }
    made = Bench(fleet, context, {"id": "j1", "kind": "sign-offer", "payload": payload}, keys)
    made.use_weights(_weights())
    return made


def test_a_good_offer_is_signed_so_that_devices_accept_it(bench: Bench) -> None:
    assert sign_offer(bench.context, bench.job) == {"round_id": "fed-1"}
    (data,) = bench.fleet.offers.values()
    targets = Metadata.from_bytes(bench.fleet.metadata["1.targets.json"]).signed
    offer = verify_offer(data, targets, device_id="d", channel="lab", now=datetime.now(UTC))
    assert offer.body.round_id == "fed-1"
    assert offer.weights.sha256 == bench.payload()["weights"]["sha256"]


def _client(bench: Bench) -> Callable[[], Client]:
    return lambda: Client(Connection(bench.context.client.server, bench.fleet.token))


def _another_channel(bench: Bench) -> None:
    bench.payload()["body"]["channel"] = "production"


def _unknown_channel(bench: Bench) -> None:
    bench.payload()["body"]["channel"] = "moon"


def _too_long(bench: Bench) -> None:
    bench.payload()["expires_at"] += 8 * 24 * 3600


def _past(bench: Bench) -> None:
    bench.payload()["expires_at"] -= 3600


def _another_model(bench: Bench) -> None:
    bench.payload()["body"]["model"] = "faces"


def _other_round(bench: Bench) -> None:
    bench.payload()["body"]["round_id"] = "fed-2"


def _other_number(bench: Bench) -> None:
    bench.payload()["body"]["number"] = 2


def _huge_rate(bench: Bench) -> None:
    bench.payload()["body"]["lr"] = 1e6


def _wrong_length(bench: Bench) -> None:
    bench.payload()["weights"]["length"] += 1


def _wrong_index(bench: Bench) -> None:
    bench.payload()["weights"]["custom"]["chunk_index"] = "0" * 64


def _served_otherwise(bench: Bench) -> None:
    bench.fleet.tamper = lambda name, data: data + b"x" if name == bench.payload()["weights"]["sha256"] else data


def _unsigned_training(bench: Bench) -> None:
    bench.payload()["training"]["sha256"] = "1" * 64


def _missing_tensor(bench: Bench) -> None:
    bench.use_weights(_weights(**{"b.m": None}))


def _wrong_shape(bench: Bench) -> None:
    bench.use_weights(_weights(**{"p.w": np.ones((3, 2), np.float32)}))


def _not_finite(bench: Bench) -> None:
    bench.use_weights(_weights(**{"p.w": np.full((2, 3), np.nan, np.float32)}))


def _no_tensors(bench: Bench) -> None:
    bench.use_weights(b"not safetensors")


def _called_a_bundle(bench: Bench) -> None:
    bench.use_weights(_weights(), kind="inference")


@pytest.mark.parametrize(
    "harm",
    [
        _another_channel,
        _unknown_channel,
        _too_long,
        _past,
        _another_model,
        _other_round,
        _other_number,
        _huge_rate,
        _wrong_length,
        _wrong_index,
        _served_otherwise,
        _unsigned_training,
        _missing_tensor,
        _wrong_shape,
        _not_finite,
        _no_tensors,
        _called_a_bundle,
    ],
)
def test_what_must_not_be_signed_is_not(bench: Bench, harm: Callable[[Bench], None]) -> None:
    harm(bench)
    with pytest.raises(CliError) as caught:
        sign_offer(bench.context, bench.job)
    assert isinstance(caught.value, RefusedError | TrustError), caught.value
    assert not bench.fleet.offers


def test_a_channel_that_opted_out_is_refused(bench: Bench, edgewise: Callable[..., Any]) -> None:
    assert edgewise("keys", "add-channel", bench.keys, "lab").status == 0
    with pytest.raises(RefusedError, match="has not opted in"):
        sign_offer(bench.context, bench.job)


def test_the_loop_tells_what_it_refused_and_goes_on(bench: Bench) -> None:
    bad = json.loads(json.dumps(bench.job))
    bad["id"], bad["payload"]["number"] = "bad", 9
    bench.fleet.jobs = [bad, bench.job]
    worker = Worker(bench.context, "w", _client(bench))
    assert worker.run(poll_s=0.01, once=True) == 2
    assert bench.fleet.ended["bad"]["how"] == "fail"
    assert "round 1" in bench.fleet.ended["bad"]["error"]
    assert bench.fleet.ended["j1"]["how"] == "finish"


def test_what_nobody_foresaw_is_told_before_the_worker_ends(bench: Bench) -> None:
    def breaks(_context: Any, _job: Any) -> dict[str, Any]:
        raise ZeroDivisionError("surprise")

    bench.fleet.jobs = [bench.job]
    worker = Worker(bench.context, "w", _client(bench), {"sign-offer": breaks})
    with pytest.raises(ZeroDivisionError):
        worker.run(poll_s=0.01, once=True)
    assert "surprise" in bench.fleet.ended["j1"]["error"]


PROMOTE = {
    "federation": "fed",
    "model": "digits",
    "channel": "lab",
    "weights_sha256": "a" * 64,
    "next_version": 2,
    "profiles": ["x86-64"],
}


@pytest.mark.parametrize(
    "change",
    [
        {"model": "../x"},
        {"weights_sha256": "short"},
        {"profiles": []},
        {"profiles": ["../../etc"]},
        {"next_version": 0},
        {"federation": "a/b"},
    ],
)
def test_a_malformed_promotion_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RefusedError):
        parse_promotion({**PROMOTE, **change})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"channel": "production"}, "opted in"),
        ({"model": "faces"}, "configured for"),
        ({"next_version": 1}, "not newer"),
    ],
)
def test_a_promotion_that_this_worker_may_not_sign_is_refused(
    keys: Path,
    fleet: Any,
    edgewise: Callable[..., Any],
    bundle: Path,
    tmp_path: Path,
    change: dict[str, Any],
    why: str,
) -> None:
    assert edgewise("sign", bundle, "--channel", "lab", "--keys", keys, "--out", tmp_path / "r").status == 0
    assert edgewise("publish", tmp_path / "r", "--keys", keys).status == 0
    targets = Metadata.from_bytes(fleet.metadata["2.targets.json"]).signed
    auto = Metadata.from_bytes(fleet.metadata["1.auto%2Flab.json"]).signed
    check_request(parse_promotion(PROMOTE), targets, auto, "digits")
    with pytest.raises(RefusedError, match=why):
        check_request(parse_promotion({**PROMOTE, **change}), targets, auto, "digits")


def test_a_worker_without_its_base_run_says_so_before_the_first_job(
    keys: Path, edgewise: Callable[..., Any], tmp_path: Path
) -> None:
    config = Path(__file__).resolve().parents[2] / "examples/digits/digits.toml"
    asked = ("worker", "run", "--keys", keys / "worker", "--config", config, "--run", tmp_path / "none", "--once")
    refused = edgewise(*asked)
    assert refused.status == 2 and "edgewise train" in refused.err
