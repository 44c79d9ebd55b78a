"""How fast the server takes telemetry in, against a bare paho consumer in the same run.

    python benchmarks/ingest.py [--messages 60000] [--devices 1000] [--rounds 5] [--database URL] [--json]

Publishers (a process of its own) → Mosquitto → either `edgewise-server run` with its bridge, which decodes, checks,
stores each message in the database (SQLite; PostgreSQL by `--database`) and acknowledges after the commit, to broker
and device; or a paho client as its manual shows it: QoS 1, TCP_NODELAY, a callback that counts, and paho acknowledges.
Each has a Mosquitto of its own; they take turns. Two measurements:

backlog: the consumer is stopped (SIGSTOP) while all messages are published, then set free; the time from there until
    the last message was counted, or was committed. Nothing else runs meanwhile: the figure is the consumer's own.
live: the messages are published as fast as the publisher can while the consumer runs; the time from the first
    publication to the last message counted or committed. On few cores publisher and broker take their share.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from edgewise_protocol.messages import ModelTelemetry, Telemetry, encode
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

TOPIC = "ew/1/dev/{}/telemetry"
GOAL = 0.8
WINDOW = 500
"""Messages that the publisher has under way."""
WAIT_S = 120.0
KEEPALIVE_S = 120
PAYLOAD_BYTES = 500


def telemetry(stream: str, seq: int) -> bytes:
    """A message as an agent with two models sends it, about 500 bytes."""
    models = tuple(
        ModelTelemetry(
            model=f"{name}-of-the-left-camera",
            version=12,
            requests=5_812 + seq,
            errors=seq % 3,
            latency_p50_ms=3.1415,
            latency_p95_ms=7.8125,
            latency_max_ms=31.0625,
        )
        for name in ("detector", "classifier")
    )
    return encode(
        Telemetry(
            stream=stream,
            seq=seq,
            at=1_700_000_000.25 + seq,
            window_s=60.003,
            models=models,
            rss_mib=80.53125,
            cpu_s=1.84375,
            load1=0.52,
            temperature_c=51.1,
            outbox_messages=seq % 7,
            after=seq - 1,
        )
    )


# -- publisher and bare consumer, each a process -----------------------------------------------


def publish(port: int, stream: str, devices: int, messages: int) -> None:
    """Publish with QoS 1 over a plain socket (MQTT 3.1.1), so that the publisher costs little."""
    packets = []
    for n in range(messages):
        topic = TOPIC.format(f"device-{n % devices}").encode()
        body = len(topic).to_bytes(2) + topic + (n % 65_535 + 1).to_bytes(2) + telemetry(stream, n // devices + 1)
        packets.append(bytes([0x32, len(body) & 127 | 128, len(body) >> 7]) + body)
    print("ready", flush=True)
    sys.stdin.readline()
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = b"publisher"
        body = b"\0\4MQTT\4\2" + KEEPALIVE_S.to_bytes(2) + len(name).to_bytes(2) + name
        link.sendall(bytes([0x10, len(body)]) + body)
        _receive(link, 4)
        for first in range(0, messages, WINDOW):
            part = packets[first : first + WINDOW]
            link.sendall(b"".join(part))
            _receive(link, 4 * len(part))
        link.sendall(b"\xe0\0")
    print("done", flush=True)


def _receive(link: socket.socket, size: int) -> None:
    while size:
        got = len(link.recv(min(size, 65_536)))
        if not got:
            raise SystemExit("the broker closed the publisher's connection")
        size -= got


def consume(port: int) -> None:
    """The bare consumer: count, and let paho acknowledge. Says `done` each time the number on stdin has come."""
    count = 0
    wanted = 0

    def counted(_client: Any, _data: Any, _message: mqtt.MQTTMessage) -> None:
        nonlocal count
        count += 1
        if count == wanted:
            print("done", flush=True)

    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="bare", protocol=mqtt.MQTTv5)
    client.on_socket_open = lambda _client, _data, link: link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.on_message = counted
    client.on_subscribe = lambda *_: print("ready", flush=True)
    client.connect("127.0.0.1", port, KEEPALIVE_S)
    client.subscribe(TOPIC.format("+"), options=SubscribeOptions(qos=1))
    client.loop_start()
    for line in sys.stdin:
        wanted, count = int(line), 0
        print("counting", flush=True)


# -- the two sides -------------------------------------------------------------------------------


class Child:
    """A process of this script, or another, that is spoken to by lines."""

    def __init__(self, command: list[str], env: dict[str, str] | None = None, log: Path | None = None) -> None:
        out = log.open("wb") if log else subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=out if log else None, env=env, text=not log
        )

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def expect(self, line: str) -> None:
        assert self.process.stdout is not None
        found = self.process.stdout.readline().strip()
        if found != line:
            raise SystemExit(f"a process said {found!r} where {line!r} was expected")

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(30)


def own(*arguments: object) -> Child:
    return Child([sys.executable, __file__, *(str(a) for a in arguments)])


class Broker:
    """A Mosquitto with queues that hold everything, on a port of its own."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("mosquitto", path=f"/usr/sbin:{os.environ.get('PATH', '')}")
        if found is None:
            raise SystemExit("mosquitto is not installed: apt install mosquitto")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        folder.mkdir()
        config = folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\npersistence false\n"
            "max_queued_messages 0\nmax_inflight_messages 1000\nmax_packet_size 8388608\nlog_type error\n"
        )
        self._child = Child([found, "-c", str(config)], log=folder / "mosquitto.log")
        _until("mosquitto listens", self._listens)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self) -> None:
        self._child.end()


class Bare:
    def __init__(self, folder: Path) -> None:
        self.broker = Broker(folder)
        self._child = own("consume", self.broker.port)
        self._child.expect("ready")
        self.process = self._child.process

    def expect(self, _stream: str, messages: int) -> None:
        self._child.say(str(messages))
        self._child.expect("counting")

    def wait(self, _stream: str, _messages: int) -> None:
        self._child.expect("done")

    def end(self) -> None:
        self._child.end()
        self.broker.end()


class Edgewise:
    """`edgewise-server run` with devices in its database."""

    def __init__(self, folder: Path, devices: int, database: str) -> None:
        from edgewise_server.context import open_context
        from edgewise_server.settings import load_settings

        self.broker = Broker(folder)
        state = folder / "state"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            http_port = probe.getsockname()[1]
        env = {
            **os.environ,
            "EDGEWISE_SERVER_EMBEDDED_BROKER": "false",
            "EDGEWISE_SERVER_BROKER_PORT": str(self.broker.port),
            "EDGEWISE_SERVER_HTTP_PORT": str(http_port),
            "EDGEWISE_SERVER_DEVICE_MESSAGES_PER_S": "100000",
            **({"EDGEWISE_SERVER_DATABASE_URL": database} if database else {}),
        }
        command = str(Path(sys.executable).parent / "edgewise-server")
        subprocess.run([command, "init", "--state", str(state)], env=env, check=True, capture_output=True)
        settings = load_settings(state, database_url=database or None)
        self._context = open_context(settings)
        self._add(devices)
        self._child = Child([command, "run", "--state", str(state)], env=env, log=folder / "server.log")
        self.process = self._child.process
        self._probe = own("publish", self.broker.port, "probe", 1, 1)
        self._probe.expect("ready")
        _until("the bridge listens", lambda: self._subscribed(folder / "server.log"))

    def _add(self, devices: int) -> None:
        from datetime import timedelta

        from edgewise_server.models.base import utc_now
        from edgewise_server.models.devices import Device

        until = utc_now() + timedelta(days=1)
        with self._context.database.session() as session:
            for n in range(devices):
                name = f"device-{n}"
                session.add(Device(id=name, channel="lab", certificate_serial=name, certificate_not_after=until))

    def _subscribed(self, log: Path) -> bool:
        """Publish one message, again and again, until it is stored: then the bridge is there."""
        if self.process.poll() is not None:
            raise SystemExit(f"the server ended: {log.read_text()[-2000:]}")
        self._probe.say("go")
        self._probe.expect("done")
        self._probe.process.wait(10)
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            if self._stored("probe"):
                return True
            time.sleep(0.05)
        self._probe = own("publish", self.broker.port, "probe", 1, 1)
        self._probe.expect("ready")
        return False

    def _stored(self, stream: str) -> int:
        from sqlalchemy import text

        with self._context.database.session(read_only=True) as session:
            query = text("SELECT COALESCE(SUM(through), 0) FROM stream_cursors WHERE stream = :stream")
            return int(session.connection().execute(query, {"stream": stream}).scalar_one())

    def expect(self, _stream: str, _messages: int) -> None:
        pass

    def wait(self, stream: str, messages: int) -> None:
        _until(f"{messages} messages are stored", lambda: self._stored(stream) == messages, 0.02)

    def end(self) -> None:
        self._child.end()
        self._context.close()
        self.broker.end()


def _until(what: str, look: Callable[[], bool], every_s: float = 0.05) -> None:
    deadline = time.monotonic() + WAIT_S
    while not look():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {WAIT_S:g} s until {what}")
        time.sleep(every_s)


# -- the measurements ----------------------------------------------------------------------------


def cpu_s(process: subprocess.Popen[Any]) -> float:
    """CPU time of a process so far, in user and kernel: what other programs on the machine do not change much."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(side: Bare | Edgewise, stream: str, devices: int, messages: int, *, live: bool) -> tuple[float, float]:
    """Messages per second, and microseconds of the consumer's CPU for each."""
    side.expect(stream, messages)
    publisher = own("publish", side.broker.port, stream, devices, messages)
    publisher.expect("ready")
    if not live:
        side.process.send_signal(signal.SIGSTOP)
    began, used = time.monotonic(), cpu_s(side.process)
    publisher.say("go")
    if not live:
        publisher.expect("done")
        began = time.monotonic()
        side.process.send_signal(signal.SIGCONT)
    side.wait(stream, messages)
    elapsed = time.monotonic() - began
    publisher.process.wait(30)
    return messages / elapsed, (cpu_s(side.process) - used) / messages * 1e6


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    bare, edgewise = Bare(folder / "bare"), Edgewise(folder / "edgewise", options.devices, options.database)
    found: dict[str, Any] = {
        "messages": options.messages,
        "devices": options.devices,
        "bytes": len(telemetry("s" * 16, 9)),
    }
    try:
        for name in ("backlog", "live"):
            rates: dict[str, list[float]] = {"bare": [], "edgewise": []}
            cpu: dict[str, list[float]] = {"bare": [], "edgewise": []}
            for n in range(options.rounds):
                for side, who in ((bare, "bare"), (edgewise, "edgewise")):
                    stream = f"{name}-{n}-{os.getpid()}"
                    rate, used = measure(side, stream, options.devices, options.messages, live=name == "live")
                    rates[who].append(rate)
                    cpu[who].append(used)
            medians = {who: statistics.median(values) for who, values in rates.items()}
            ratios = [e / b for e, b in zip(rates["edgewise"], rates["bare"], strict=True)]
            found[name] = {
                **medians,
                "ratio": medians["edgewise"] / medians["bare"],
                "ratios": ratios,
                "cpu_us": {who: statistics.median(values) for who, values in cpu.items()},
            }
    finally:
        edgewise.end()
        bare.end()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=60_000)
    parser.add_argument("--devices", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--database", default="", help="URL of an empty PostgreSQL database; default: SQLite")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.messages % options.devices:
        parser.error("--messages must be a multiple of --devices")
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(folder), options)
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{options.messages} messages of {found['bytes']} bytes, {options.devices} devices, QoS 1; messages/s")
        for name in ("backlog", "live"):
            row = found[name]
            spread = ", ".join(f"{ratio:.2f}" for ratio in row["ratios"])
            rates = f"bare paho {row['bare']:8.0f}   edgewise {row['edgewise']:8.0f}"
            cpu = f"CPU us/message {row['cpu_us']['bare']:.0f} and {row['cpu_us']['edgewise']:.0f}"
            print(f"{name:8} {rates}   ratio {row['ratio']:.2f}  ({spread})   {cpu}")
    return 0 if min(found[name]["ratio"] for name in ("backlog", "live")) >= GOAL else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["publish"]:
        publish(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    elif sys.argv[1:2] == ["consume"]:
        consume(int(sys.argv[2]))
    else:
        sys.exit(main())
