"""Real brokers for the bridge's tests: Mosquitto as in production, and the embedded iotcore."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from edgewise_protocol import topics
from edgewise_protocol.bounds import MAX_PACKET_BYTES
from edgewise_protocol.messages import Ack, Message, decode, encode
from edgewise_server.bridge.service import Bridge
from edgewise_server.broker.embedded import EmbeddedBroker
from edgewise_server.context import Context
from edgewise_server.models.base import utc_now
from edgewise_server.models.devices import Device
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

WAIT_S = 15.0
MOSQUITTO = shutil.which("mosquitto") or "/usr/sbin/mosquitto"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"timed out waiting for {what}")
        time.sleep(0.01)
    return found


class Mosquitto:
    """The real broker with a temporary configuration; without persistence a restart loses everything."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port, self._folder = port, folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        config = self._folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n"
            f"max_packet_size {MAX_PACKET_BYTES}\nmax_queued_messages 20000\nmax_inflight_messages 1000\n"
        )
        self._process = subprocess.Popen(
            [MOSQUITTO, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(self._answers, "Mosquitto")

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


class Phone:
    """A device's MQTT side, simple and synchronous."""

    def __init__(self, port: int, device_id: str) -> None:
        self.device_id = device_id
        self.acks: list[Ack] = []
        self.retained: dict[str, bytes] = {}
        self._news = threading.Condition()
        self._up = threading.Event()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=f"device-{device_id}-{time.monotonic_ns()}", protocol=mqtt.MQTTv5
        )
        self._client.on_message = self._on_message
        self._client.on_subscribe = lambda *_: self._up.set()
        self._client.on_connect = lambda client, *_: client.subscribe(
            [(topics.device(device_id, "ack"), SubscribeOptions(qos=1))]
        )
        self._client.on_socket_open = lambda _client, _data, opened: opened.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._up.wait(WAIT_S)

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        with self._news:
            if message.topic.endswith("/ack"):
                self.acks.append(decode(Ack, message.payload))
            else:
                self.retained[message.topic] = message.payload
            self._news.notify_all()

    def send(self, leaf: str, message: Message) -> None:
        self.send_raw(topics.device(self.device_id, leaf), encode(message))

    def send_raw(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        info.wait_for_publish(WAIT_S)
        assert info.is_published()

    def listen(self, *names: str) -> None:
        self._up.clear()
        self._client.subscribe([(name, SubscribeOptions(qos=1)) for name in names])
        assert self._up.wait(WAIT_S)

    def wait(self, condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
        with self._news:
            if not self._news.wait_for(condition, timeout_s):
                raise AssertionError(f"timed out waiting for {what}; acks: {self.acks[-5:]}")
            return condition()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def add_device(context: Context, device_id: str, **values: Any) -> None:
    with context.database.session() as session:
        session.add(
            Device(
                id=device_id,
                channel=values.pop("channel", "lab"),
                certificate_serial=f"serial-{device_id}",
                certificate_not_after=utc_now() + timedelta(days=1),
                **values,
            )
        )


@pytest.fixture(params=["mosquitto", "iotcore"])
def running_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A broker on a free port: `.port`, `.start()`, `.stop()`; a stop forgets everything."""
    port = free_port()
    broker: Any
    if request.param == "mosquitto":
        broker = Mosquitto(port, tmp_path)
    else:
        broker = EmbeddedBroker(SimpleNamespace(broker_host="127.0.0.1", broker_port=port))  # type: ignore[arg-type]
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def bridged(running_broker: Any, tmp_path: Path, kit: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """A server's context whose broker runs: `.context`, `.broker`, `.bridge()`, `.phone(id)`."""
    context = kit.make_state(tmp_path / "state", broker_port=running_broker.port, embedded_broker=False)
    opened: list[Any] = []

    def bridge() -> Bridge:
        made = Bridge(context)
        made.start()
        opened.append(made.stop)
        assert made.wait_ready(WAIT_S)
        return made

    def phone(device_id: str) -> Phone:
        made = Phone(running_broker.port, device_id)
        opened.append(made.close)
        return made

    yield SimpleNamespace(
        context=context,
        broker=running_broker,
        bridge=bridge,
        phone=phone,
        add_device=lambda device_id, **values: add_device(context, device_id, **values),
        wait_for=wait_for,
    )
    for close in reversed(opened):
        close()
    context.close()
