"""The danger: a round trained twice, data that leave, an upload that hangs or sends what it may not."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edgewise_agent.learning.client import FederatedClient, LearningLimits
from edgewise_agent.learning.memory import Newest, RoundMemory
from edgewise_protocol import messages
from edgewise_protocol.bounds import CHUNK_BYTES
from edgewise_protocol.errors import OfferError
from edgewise_protocol.messages import Ack, Event, UpdateReady
from safetensors.numpy import load, save_file


class Server:
    """The other end: takes what is published, acknowledges as the fleet server does."""

    def __init__(self) -> None:
        self.client: FederatedClient | None = None
        self.published: list[tuple[str, bytes]] = []
        self.chunks: dict[int, bytes] = {}
        self.ready: UpdateReady | None = None
        self.announced = 0
        self.credits = 2
        self.limit = 0
        self.lose: set[int] = set()
        self.deaf = False
        self.done = threading.Event()

    def publish(self, topic: str, payload: bytes) -> None:
        self.published.append((topic, payload))
        if self.deaf:
            return
        if topic == "ew/1/dev/d1/update-ready":
            self.ready = messages.decode(UpdateReady, payload)
            self.announced += 1
        else:
            prefix, _, number = topic.rpartition("/")
            assert prefix == "ew/1/dev/d1/update/r1"
            assert int(number) < self.limit, "a chunk was sent without a credit"
            if int(number) in self.lose:
                self.lose.discard(int(number))
                return
            self.chunks[int(number)] = payload
        self.answer()

    def answer(self) -> None:
        assert self.client is not None
        assert self.ready is not None
        stored = 0
        while stored in self.chunks:
            stored += 1
        data = b"".join(self.chunks[i] for i in range(stored))
        complete = len(data) == self.ready.length and hashlib.sha256(data).hexdigest() == self.ready.sha256
        self.limit = stored + self.credits
        self.client.on_ack(
            Ack(round_id="r1", chunks_through=stored, credits=0 if complete else self.credits, complete=complete)
        )
        if complete:
            self.done.set()

    def update(self) -> bytes:
        return b"".join(self.chunks[i] for i in sorted(self.chunks))


def codes(outbox: Any) -> list[str]:
    return [messages.decode(Event, item.payload).code for item in outbox.pending(0, 100)]


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    pause, end = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        pause.wait(0.01)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def start(material: Any, outbox: Any, server: Server, tmp_path: Path) -> Iterator[Callable[..., FederatedClient]]:
    made: list[FederatedClient] = []

    def make(offers: Any, data: Path | None = material.data, **limits: Any) -> FederatedClient:
        def verify(payload: bytes) -> Any:
            name = payload.decode()
            if name not in offers:
                raise OfferError("the round offer is not signed")
            return offers[name]

        def fetch(file: Any) -> Path:
            return {"training": material.bundle, "weights": material.weights}[file.custom.kind]

        client = FederatedClient(
            server.publish,
            fetch,
            verify,
            data,
            tmp_path / "learning",
            "d1",
            True,
            outbox,
            LearningLimits(stall_scale=limits.pop("stall_scale", 1.0), **limits),
        )
        server.client = client
        made.append(client)
        return client

    yield make
    for client in made:
        client.stop()


def test_a_round_from_offer_to_stored_update(
    start: Any, server: Server, outbox: Any, material: Any, make_offer: Any
) -> None:
    client = start({"r1": make_offer()})
    client.on_offer(b"r1")
    assert server.done.wait(30)
    until(lambda: "round-done" in codes(outbox))
    assert codes(outbox) == ["round-started", "round-trained", "round-done"]
    ready = server.ready
    assert ready is not None
    assert (ready.samples, ready.simulated) == (101, True)
    assert set(ready.metrics) == {
        "loss_before",
        "loss_after",
        "accuracy_before",
        "accuracy_after",
        "steps",
        "seconds",
    }
    assert ready.metrics["loss_after"] < ready.metrics["loss_before"]
    assert ready.metrics["steps"] == 30
    update = load(server.update())
    assert update.keys() == material.start.keys()
    assert not np.array_equal(update["p.w"], material.start["p.w"])
    everything = b"".join(payload for _, payload in server.published) + b"".join(
        item.payload for item in outbox.pending(0, 100)
    )
    assert material.x[:4].tobytes() not in everything
    assert client.state == ("r1", "done")


def test_a_round_is_trained_once_even_when_offered_again(
    start: Any, server: Server, outbox: Any, make_offer: Any
) -> None:
    offers = {"r1": make_offer()}
    client = start(offers)
    client.on_offer(b"r1")
    assert server.done.wait(30)
    until(lambda: client.state == ("r1", "done"))
    client.on_offer(b"r1")
    client.stop()
    again = start(offers)
    again.on_offer(b"r1")
    again.on_offer(b"unsigned")
    until(lambda: "round-offer-refused" in codes(outbox))
    assert codes(outbox).count("round-started") == 1
    assert server.announced == 1


def test_an_update_that_was_trained_is_sent_after_a_restart_without_training(
    start: Any, server: Server, outbox: Any, make_offer: Any
) -> None:
    offers = {"r1": make_offer()}
    server.deaf = True
    first = start(offers)
    first.on_offer(b"r1")
    until(lambda: first.state == ("r1", "ready"))
    first.stop()
    server.deaf = False
    second = start(offers)
    second.on_offer(b"r1")
    assert server.done.wait(30)
    until(lambda: "round-done" in codes(outbox))
    assert codes(outbox) == ["round-started", "round-trained", "round-done"]


def test_training_that_was_cut_short_is_not_begun_again(
    start: Any, server: Server, outbox: Any, make_offer: Any
) -> None:
    offers = {"r1": make_offer(epochs=1000, max_steps=1_000_000, batch_size=2)}
    first = start(offers)
    first.on_offer(b"r1")
    until(lambda: first.state == ("r1", "training"))
    first.stop()
    second = start(offers)
    second.on_offer(b"r1")
    until(lambda: "round-interrupted" in codes(outbox), 5)
    assert server.announced == 0


def large_material(material: Any, folder: Path, chunks: int) -> tuple[Path, Path]:
    """A bundle with a buffer that no step reads, so that the update needs several chunks."""
    from edgewise_protocol.bundle import BundleReader, file_entry, write_bundle
    from edgewise_protocol.manifest import TensorSpec

    pad = np.arange(chunks * CHUNK_BYTES // 4, dtype=np.float32)
    with material.bundle.open("rb") as source:
        reader = BundleReader(source)
        manifest = reader.verify()
        files = {entry.name: reader.read(entry.name) for entry in manifest.files}
    step = _with_pad(files["step.onnx"], len(pad))
    files["step.onnx"] = step
    spec = msgspec.structs.replace(
        material.spec,
        buffers=(*material.spec.buffers, TensorSpec(name="pad", dtype="FP32", shape=(len(pad),))),
    )
    manifest = msgspec.structs.replace(
        manifest, training=spec, files=tuple(file_entry(name, data) for name, data in files.items())
    )
    with (folder / "large.ewb").open("wb") as out:
        write_bundle(out, manifest, files)
    save_file({**material.start, "b.pad": pad}, folder / "large.safetensors")
    return folder / "large.ewb", folder / "large.safetensors"


def _with_pad(step: bytes, length: int) -> bytes:
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_from_string(step)
    model.graph.input.append(helper.make_tensor_value_info("b.pad", TensorProto.FLOAT, [length]))
    model.graph.output.append(helper.make_tensor_value_info("new_b.pad", TensorProto.FLOAT, [length]))
    model.graph.node.append(helper.make_node("Identity", ["b.pad"], ["new_b.pad"]))
    return model.SerializeToString()


def test_chunks_go_as_credits_allow_and_lost_ones_again(
    start: Any, server: Server, outbox: Any, material: Any, make_offer: Any, tmp_path: Path
) -> None:
    bundle, weights = large_material(material, tmp_path, 5)
    large = material._replace(bundle=bundle, weights=weights)
    client = start({"r1": make_offer()}, stall_scale=0.02)
    client._fetch = lambda file: {"training": large.bundle, "weights": large.weights}[file.custom.kind]
    server.lose = {1, 4}
    client.on_offer(b"r1")
    assert server.done.wait(30)
    until(lambda: "round-done" in codes(outbox))
    assert sorted(server.chunks) == list(range(6))
    assert server.announced > 1
    update = load(server.update())
    assert update["b.pad"][-1] == 5 * CHUNK_BYTES // 4 - 1


def test_a_silent_server_is_given_up_and_the_update_kept(
    start: Any, server: Server, outbox: Any, make_offer: Any
) -> None:
    server.deaf = True
    client = start({"r1": make_offer()}, stall_scale=0.001)
    client.on_offer(b"r1")
    until(lambda: "round-stalled" in codes(outbox))
    assert sum(topic.endswith("update-ready") for topic, _ in server.published) == 6
    server.deaf = False
    client.on_offer(b"r1")
    assert server.done.wait(10)
    assert codes(outbox).count("round-started") == 1


def test_a_refusal_ends_the_round(start: Any, server: Server, outbox: Any, make_offer: Any) -> None:
    server.deaf = True
    client = start({"r1": make_offer()})
    client.on_offer(b"r1")
    until(lambda: client.state == ("r1", "ready"))
    client.on_ack(Ack(round_id="other", error="not this one"))
    client.on_ack(Ack(round_id="r1", error="the round is closed"))
    until(lambda: client.state == ("r1", "failed"))
    until(lambda: "round-refused" in codes(outbox))


def test_a_newer_round_takes_the_place_of_one_that_trains(
    start: Any, server: Server, outbox: Any, make_offer: Any
) -> None:
    offers = {
        "old": make_offer("old", 1, epochs=1000, max_steps=1_000_000, batch_size=2),
        "other": make_offer("other", 9, federation="another"),
        "r1": make_offer("r1", 2),
    }
    client = start(offers)
    client.on_offer(b"old")
    until(lambda: client.state == ("old", "training"))
    client.on_offer(b"other")
    client.on_offer(b"r1")
    assert server.done.wait(30)
    until(lambda: "round-done" in codes(outbox))
    assert codes(outbox) == [
        "round-started",
        "round-declined",
        "round-superseded",
        "round-started",
        "round-trained",
        "round-done",
    ]


@pytest.mark.parametrize("samples", [0, 1])
def test_too_few_samples_decline_once(
    start: Any, server: Server, outbox: Any, make_offer: Any, tmp_path: Path, samples: int
) -> None:
    path = tmp_path / "few.safetensors"
    save_file({"x": np.zeros((samples, 4), np.float32), "y": np.zeros(samples, np.int64)}, path)
    client = start({"r1": make_offer()}, data=path)
    client.on_offer(b"r1")
    client.on_offer(b"r1")
    client.on_offer(b"forged")
    until(lambda: "round-offer-refused" in codes(outbox))
    assert codes(outbox) == ["round-declined", "round-offer-refused"]
    assert server.published == []


def test_bad_data_fail_the_round_with_the_reason(
    start: Any, server: Server, outbox: Any, make_offer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "wide.safetensors"
    save_file({"x": np.zeros((9, 7), np.float32), "y": np.zeros(9, np.int64)}, path)
    client = start({"r1": make_offer()}, data=path)
    client.on_offer(b"r1")
    until(lambda: "round-data" in codes(outbox))
    event = messages.decode(Event, outbox.pending(0, 10)[-1].payload)
    assert "should be FP32 of shape [-1, 4]; it is FP32 of shape [9, 7]" in event.text
    assert event.kind == "round"
    assert event.data["round_id"] == "r1"


def test_training_that_takes_too_long_is_ended(start: Any, server: Server, outbox: Any, make_offer: Any) -> None:
    client = start({"r1": make_offer(epochs=1000, max_steps=1_000_000, batch_size=2)}, timeout_s=1.0)
    client.on_offer(b"r1")
    until(lambda: "round-training" in codes(outbox))
    assert "took more than 1 s" in messages.decode(Event, outbox.pending(0, 10)[-1].payload).text


def test_without_data_nothing_is_done_or_said(start: Any, server: Server, outbox: Any, make_offer: Any) -> None:
    client = start({"r1": make_offer()}, data=None)
    client.on_offer(b"r1")
    client.on_offer(b"")
    client.stop()
    assert codes(outbox) == []
    assert server.published == []


def test_an_offer_that_names_other_devices_is_no_event(start: Any, outbox: Any) -> None:
    client = start({})
    client.on_offer(b'{"signed": {"edgewise": {"devices": ["d2", "d3"]}}}')
    client.on_offer(b'{"signed": {"edgewise": {"devices": ["d1"]}}}')
    until(lambda: len(outbox) == 1)
    assert codes(outbox) == ["round-offer-refused"]


def test_an_earlier_round_is_not_gone_back_to_unless_the_keys_were_replaced(
    start: Any, server: Server, outbox: Any, make_offer: Any, tmp_path: Path
) -> None:
    """A replayed offer is refused; what a stolen key numbered does not bind the key that takes its place."""
    memory = tmp_path / "learning"
    memory.mkdir()
    RoundMemory(memory).take_up("fed", 99_999, "stolen")
    client = start({"replayed": make_offer("r0", 3, keys="stolen"), "honest": make_offer("r1", 1, keys="new")})
    client.on_offer(b"replayed")
    until(lambda: "round-offer-refused" in codes(outbox))
    refused = messages.decode(Event, outbox.pending(0, 100)[-1].payload)
    assert (refused.code, refused.data["reason"]) == ("round-offer-refused", "round-offer-stale")
    client.on_offer(b"honest")
    assert server.done.wait(30)
    assert RoundMemory(memory).newest("fed") == Newest(number=1, keys="new")
