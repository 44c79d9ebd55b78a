"""A server's process, a Mosquitto, and devices that are nothing but the agent's own outbox, pump and session.

Broker, server and disk may be killed, stalled, wiped and filled while the devices speak. `settle` then waits until
each outbox is empty, and compares what the devices put with what the database holds.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from edgewise_agent.observe.outbox import Outbox
from edgewise_agent.reporting.pump import Pump
from edgewise_agent.session.core import Policy
from edgewise_agent.session.shell import Endpoint, Session
from edgewise_protocol import topics
from edgewise_protocol.messages import Ack, Event, ModelTelemetry, Status, Streamed, Telemetry, decode
from edgewise_server.context import Context, open_context
from edgewise_server.models.base import utc_now
from edgewise_server.models.devices import Device
from edgewise_server.settings import load_settings
from sqlalchemy import text

RESEND_S = 2.0
MIB = 1 << 20


class Broker:
    """A Mosquitto with the queue of a small board, which may keep its state on the disk."""

    def __init__(self, folder: Path, tools: Any, *, queued: int = 1_000) -> None:
        found = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        assert found is not None, "mosquitto is not installed: apt install mosquitto"
        folder.mkdir()
        self._tools = tools
        self._state = folder / "mosquitto.db"
        self.port = tools.free_port()
        config = folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_packet_size 8388608\n"
            f"persistence true\npersistence_location {folder}/\nautosave_interval 1\nmax_queued_messages {queued}\n"
            "sys_interval 1\nuser root\nlog_type error\nlog_type warning\n"
        )
        self.process = tools.Process("mosquitto", [found, "-c", str(config)], dict(os.environ), folder / "log")

    def start(self) -> None:
        self.process.start()
        self._tools.wait_for("mosquitto listens", self._listens, 10)

    def _listens(self) -> bool:
        self.process.check()
        with socket.socket() as probe:
            return bool(probe.connect_ex(("127.0.0.1", self.port)) == 0)

    def restart(self) -> None:
        """In order: sessions, queues and retained messages come back."""
        self.process.stop()
        assert self._state.exists(), "Mosquitto kept nothing"
        self.start()

    def wipe(self) -> None:
        """Killed, and its disk lost: no session, no queue, no retained message comes back."""
        self.process.kill()
        self._state.unlink(missing_ok=True)
        self.start()


class Phone:
    """One device's outbox, pump and session, with short waits; nothing else differs from the agent."""

    def __init__(self, folder: Path, port: int, device_id: str, max_bytes: int) -> None:
        self.device_id = device_id
        self.outbox = Outbox(folder / f"{device_id}.sqlite", max_bytes)
        self.put_seqs: Counter[str] = Counter()
        self._ack = topics.device(device_id, "ack")
        self._session = Session(
            Endpoint("127.0.0.1", port, device_id),
            [self._ack],
            lambda session: Status(online=True, session=session, at=time.time()),
            self._message,
            lambda _mid: None,
            lambda: self._pump.online(),
            lambda: self._pump.offline(),
            Policy(0.1, 0.5),
        )
        self._pump = Pump(
            self.outbox,
            lambda leaf, payload: self._session.publish(topics.device(device_id, leaf), payload),
            RESEND_S,
        )
        self.outbox.on_put = self._pump.filled

    def start(self) -> None:
        self._pump.start()
        self._session.start()

    def stop(self) -> None:
        self._pump.stop()
        self._session.stop()
        self.outbox.close()

    def _message(self, topic: str, payload: bytes) -> None:
        if topic == self._ack:
            self._pump.acknowledged(decode(Ack, payload))

    def put(self, leaf: str = "telemetry", padding: int = 0) -> None:
        def telemetry(stream: str, seq: int, at: float) -> Streamed:
            counted = ModelTelemetry(model="m" + "m" * min(padding, 60), version=1, requests=seq)
            return Telemetry(stream=stream, seq=seq, at=at, window_s=1.0, models=(counted,) * (1 + padding // 100))

        def event(stream: str, seq: int, at: float) -> Streamed:
            return Event(stream=stream, seq=seq, at=at, kind="agent", text="x" * padding)

        self.outbox.put(leaf, event if leaf == "event" else telemetry)  # type: ignore[arg-type]
        self.put_seqs[leaf] += 1


class World:
    """Everything of one test. `tools` is the module `processes` of the end-to-end tests."""

    def __init__(
        self,
        folder: Path,
        tools: Any,
        *,
        devices: int = 10,
        queued: int = 1_000,
        state: Path | None = None,
        database: str = "",
        max_bytes: int = 32 * MIB,
    ) -> None:
        self.tools = tools
        self.broker = Broker(folder / "broker", tools, queued=queued)
        self.state = state or folder / "state"
        self._port = tools.free_port()
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("EDGEWISE_")},
            "OMP_NUM_THREADS": "1",
            "EDGEWISE_SERVER_EMBEDDED_BROKER": "false",
            "EDGEWISE_SERVER_BROKER_PORT": str(self.broker.port),
            "EDGEWISE_SERVER_HTTP_PORT": str(self._port),
            **({"EDGEWISE_SERVER_DATABASE_URL": database} if database else {}),
        }
        program = tools.program("edgewise-server")
        made = subprocess.run([program, "init", "--state", str(self.state)], env=env, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        self.server = tools.Process("server", [program, "run", "--state", str(self.state)], env, folder / "server.log")
        self.context: Context = open_context(load_settings(self.state, database_url=database or None))
        names = [f"device-{n}" for n in range(devices)]
        self._register(names)
        outboxes = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else folder) / f"ew-delivery-{os.getpid()}"
        # The devices' disks are not under test here: their durability is the outbox's own tests'.
        shutil.rmtree(outboxes, ignore_errors=True)
        outboxes.mkdir()
        self._outboxes = outboxes
        self.phones = [Phone(outboxes, self.broker.port, name, max_bytes) for name in names]

    def _register(self, names: list[str]) -> None:
        until = utc_now() + timedelta(days=1)
        with self.context.database.session() as session:
            for name in names:
                session.add(Device(id=name, channel="lab", certificate_serial=name, certificate_not_after=until))

    def start(self) -> None:
        self.broker.start()
        self.start_server()
        for phone in self.phones:
            phone.start()

    def start_server(self) -> None:
        self.server.start()
        self.tools.wait_for("the server answers", self.answers, 90)

    def answers(self) -> bool:
        self.server.check()
        try:
            return httpx.get(f"http://127.0.0.1:{self._port}/api/v1/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def end(self) -> None:
        self.signal(signal.SIGCONT)
        for phone in self.phones:
            phone.stop()
        self.server.stop()
        self.broker.process.stop()
        self.context.close()
        shutil.rmtree(self._outboxes, ignore_errors=True)

    def signal(self, number: signal.Signals) -> None:
        """Signal the server; with SIGSTOP, return when each of its threads stands: a commit may be under way."""
        running = self.server._running
        if running is None:
            return
        running.send_signal(number)
        if number == signal.SIGSTOP:
            threads = Path(f"/proc/{running.pid}/task")
            self.wait("the server stands", lambda: {_state(thread) for thread in threads.iterdir()} == {"T"}, 10)

    # -- messages ----------------------------------------------------------------------------

    def put(self, number: int) -> None:
        """Put messages in the outboxes, by turns; every tenth is an event."""
        for n in range(number):
            self.phones[n % len(self.phones)].put("event" if n // len(self.phones) % 10 == 0 else "telemetry")

    def waiting(self) -> int:
        return sum(len(phone.outbox) for phone in self.phones)

    def stored(self) -> int:
        return int(self._ask("SELECT COUNT(*) FROM messages")[0][0])

    def _ask(self, query: str) -> list[Any]:
        with self.context.database.session(read_only=True) as session:
            return list(session.connection().execute(text(query)))

    def wait(self, what: str, look: Callable[[], Any], timeout_s: float = 60.0) -> None:
        self.tools.wait_for(what, look, timeout_s, 0.05)

    def settle(self, timeout_s: float = 60.0) -> None:
        """Wait until the outboxes are empty; then each message that was not given up must be stored once."""
        self.wait(f"the outboxes are empty ({self.waiting()} wait)", lambda: self.waiting() == 0, timeout_s)
        found: dict[str, set[int]] = {phone.device_id: set() for phone in self.phones}
        for device_id, seq in self._ask("SELECT device_id, seq FROM messages"):
            assert seq not in found[device_id], f"{device_id} has {seq} in two streams"
            found[device_id].add(seq)
        for phone in self.phones:
            put, dropped = phone.put_seqs.total(), phone.outbox.dropped
            missing = set(range(1, put + 1)) - found[phone.device_id]
            assert found[phone.device_id] <= set(range(1, put + 1)), phone.device_id
            assert len(missing) <= dropped, f"{phone.device_id} lost {sorted(missing)[:20]}, and gave up only {dropped}"
        self._check_windows()

    def _check_windows(self) -> None:
        """Rows without a key of their own stand once for each stored telemetry message."""
        (twice,) = self._ask(
            "SELECT COUNT(*) FROM (SELECT device_id, requests FROM model_windows GROUP BY device_id, requests"
            " HAVING COUNT(*) > 1) AS twice"
        )[0]
        (windows,) = self._ask("SELECT COUNT(*) FROM model_windows")[0]
        (telemetry,) = self._ask("SELECT COUNT(*) FROM messages WHERE kind = 'telemetry'")[0]
        assert twice == 0, f"{twice} telemetry messages were counted twice"
        assert windows == telemetry, f"{windows} windows of {telemetry} telemetry messages"


def _state(thread: Path) -> str:
    """A thread's state in one letter (proc(5), `stat`); `T` is stopped, or gone."""
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "T"
