"""Danger: a fault between device and database loses a message for good, or counts it twice.

Real Mosquitto, the real server process, and the agent's own outbox, pump and session. The broker's queue holds less
than what the devices send meanwhile, so that it acknowledges and drops in silence.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

pytestmark = pytest.mark.slow
NUMBER = 600


class Dropped:
    """What the broker says that it dropped."""

    def __init__(self, port: int) -> None:
        self.number = 0
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="observer")
        self._client.on_message = self._heard
        self._client.connect("127.0.0.1", port)
        self._client.subscribe("$SYS/broker/publish/messages/dropped")
        self._client.loop_start()

    def _heard(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        self.number = max(self.number, int(message.payload))

    def __enter__(self) -> Dropped:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def test_without_a_fault(shared: Any) -> None:
    shared.put(NUMBER)
    shared.settle()


def test_the_broker_restarts(shared: Any) -> None:
    shared.put(NUMBER)
    shared.broker.restart()
    shared.put(NUMBER)
    shared.settle()


def test_the_broker_loses_its_disk(shared: Any) -> None:
    shared.put(NUMBER)
    shared.broker.wipe()
    shared.put(NUMBER)
    shared.settle()


def test_the_server_is_killed_in_the_middle_of_a_batch(shared: Any) -> None:
    before = shared.stored()
    shared.put(NUMBER)
    shared.wait("some are stored", lambda: shared.stored() > before)
    shared.server.kill()
    shared.put(NUMBER)
    shared.start_server()
    shared.settle()


def test_the_broker_loses_its_disk_while_the_server_is_dead(shared: Any) -> None:
    shared.server.kill()
    shared.put(NUMBER)
    shared.broker.wipe()
    shared.start_server()
    shared.settle()


def test_the_bridge_stalls_for_longer_than_the_broker_can_queue(make_world: Callable[..., Any]) -> None:
    world = make_world(queued=100)
    world.put(NUMBER)
    world.settle()
    world.signal(signal.SIGSTOP)
    with Dropped(world.broker.port) as dropped:
        world.put(4 * NUMBER)
        world.wait("the broker drops in silence", lambda: dropped.number > 50)
    assert world.waiting() > 0
    world.signal(signal.SIGCONT)
    world.settle()


def test_the_servers_disk_is_full(make_world: Callable[..., Any], small_disk: Path) -> None:
    world = make_world(state=small_disk / "state")
    world.put(NUMBER)
    world.settle()
    filling = small_disk / "filling"
    with filling.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"x" * 4096)
    world.put(4 * NUMBER)
    world.wait("the server says so", lambda: "its disk is full" in world.server.text)
    assert world.waiting() > 0
    filling.unlink()
    world.settle()
    assert "Traceback" not in world.server.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("a file system cannot be mounted here: run as root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_devices_outbox_is_full(make_world: Callable[..., Any]) -> None:
    """The oldest telemetry goes first, events last; each is counted, and the server waits for none of them."""
    world = make_world(devices=2, max_bytes=20_000)
    world.server.kill()
    for n in range(400):
        for phone in world.phones:
            phone.put("event" if n % 20 == 0 else "telemetry")
    for phone in world.phones:
        assert len(phone.outbox) + phone.outbox.dropped == 400
        assert phone.outbox.dropped > 100
    world.start_server()
    world.settle()
    for phone in world.phones:
        stored = world._ask(f"SELECT kind FROM messages WHERE device_id = '{phone.device_id}'")
        assert sum(kind == "event" for (kind,) in stored) == phone.put_seqs["event"]
        assert len(stored) >= 400 - phone.outbox.dropped


def test_postgresql_goes_away_and_comes_back(make_world: Callable[..., Any], postgresql: Any) -> None:
    world = make_world(database=postgresql.url)
    world.put(NUMBER)
    world.settle()
    postgresql.stop()
    world.put(NUMBER)
    world.wait("the server says so", lambda: "the database cannot be used" in world.server.text)
    assert world.waiting() > 0
    postgresql.start()
    world.settle()
