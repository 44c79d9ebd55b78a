"""A fleet for the kills: Mosquitto, the real server as a process that can be killed, and light devices over MQTT.

The devices verify every assignment as agents do, and report what an agent would that commits at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import paho.mqtt.client as mqtt
from edgewise_protocol import topics
from edgewise_protocol.assignment import Accepted, verify_assignment
from edgewise_protocol.facts import DeviceFacts
from edgewise_protocol.messages import ModelReport, Reported, Status, encode
from edgewise_server.context import Context, online_description
from edgewise_server.models.base import utc_now
from edgewise_server.models.devices import Device, DirectorCounter
from edgewise_server.services import tokens
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

WAIT_S = 60.0
BOARD = "raspberry-pi-4-64"
FACTS = DeviceFacts(machine="aarch64", compatible=(BOARD,), engines={"onnxruntime": "1.32.0"}, simulated=True)
PHASES = [{"percent": 34, "min_devices": 1}, {"percent": 100}]


class LightDevice:
    """The MQTT side of a device; its thread is paho's."""

    def __init__(self, port: int, name: str, verify: Callable[[bytes, str, Accepted], Any]) -> None:
        self.name = name
        self.seen: list[tuple[int, bytes]] = []
        """(version, payload) of every assignment that was accepted as new, in order."""
        self.refused: list[str] = []
        self.active = (0, "")
        self._accepted = Accepted()
        self._verify = verify
        self._client = client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        client.on_message = self._on_message
        client.on_connect = lambda client, *_: client.subscribe(
            [(topics.device(name, "assignment"), SubscribeOptions(qos=1))]
        )
        client.connect("127.0.0.1", port)
        client.loop_start()
        born = Status(online=True, session=secrets.token_hex(8), at=time.time(), facts=FACTS)
        client.publish(topics.device(name, "status"), encode(born), qos=1, retain=True).wait_for_publish(WAIT_S)

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        if any(payload == message.payload for _, payload in self.seen):
            return
        try:
            found = self._verify(message.payload, self.name, self._accepted)
        except Exception as error:
            self.refused.append(f"{type(error).__name__}: {error}")
            return
        self._accepted = Accepted(found.version)
        self.seen.append((found.version, message.payload))
        files = [file for file in found.bundles if file.custom.model == "digits"]
        self.active = (files[0].custom.version, files[0].sha256) if files else (0, "")
        report = ModelReport(
            model="digits",
            state="committed",
            since=time.time(),
            active_version=self.active[0],
            active_sha256=self.active[1],
            target_version=self.active[0],
            target_sha256=self.active[1],
        )
        reported = Reported(
            at=time.time(), assignment_version=found.version, models=(report,) if files else (), simulated=True
        )
        self._client.publish(topics.device(self.name, "reported"), encode(reported), qos=1, retain=True)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Server:
    """The server's process, by the zygote."""

    def __init__(self, folder: Path, args: list[str], env: dict[str, str]) -> None:
        self._folder, self._args, self._env = folder, args, env
        self._zygote = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        self._pid: int | None = None
        self._ended = threading.Event()
        self.status: int | None = None

    @property
    def log(self) -> str:
        path = self._folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, kill: tuple[int, str] | None = None) -> None:
        """Start it; with `kill` it dies by itself at that step."""
        assert self._zygote.stdin is not None and self._zygote.stdout is not None
        (self._folder / "steps").unlink(missing_ok=True)
        order = {
            "args": self._args,
            "env": self._env,
            "log": str(self._folder / "server.log"),
            "steps": str(self._folder / "steps"),
            "kill": kill,
        }
        self._zygote.stdin.write(json.dumps(order) + "\n")
        self._zygote.stdin.flush()
        self._pid = int(self._zygote.stdout.readline().removeprefix("pid "))
        self._ended.clear()
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        assert self._zygote.stdout is not None
        self.status = int(self._zygote.stdout.readline().removeprefix("ended ") or 0)
        self._ended.set()

    @property
    def dead(self) -> bool:
        return self._ended.is_set()

    def steps(self) -> list[str]:
        """What the newest process did since a rollout was made in it."""
        path = self._folder / "steps"
        return path.read_text().splitlines() if path.exists() else []

    def stop(self, *, or_killed: bool = False) -> None:
        """SIGTERM, and its end; with `or_killed` it may come to its step on the way."""
        if self._pid is not None and not self.dead:
            with contextlib.suppress(ProcessLookupError):  # it died just now
                os.kill(self._pid, signal.SIGTERM)
            assert self._ended.wait(WAIT_S), "the server does not end"
            assert self.status == 0 or (or_killed and self.status == -signal.SIGKILL), self.log[-3000:]

    def close(self) -> None:
        self.stop()
        assert self._zygote.stdin is not None and self._zygote.stdout is not None
        self._zygote.stdin.close()
        self._zygote.wait(WAIT_S)
        self._zygote.stdout.close()


class Site:
    """Everything of one fleet. `kit` are the functions of the server's tests, `broker` a running Mosquitto."""

    def __init__(self, folder: Path, kit: Any, broker: Any, port: int, database_url: str | None) -> None:
        self.kit, self.broker = kit, broker
        self.state = folder / "state"
        self.context: Context = kit.make_state(self.state, database_url, embedded_broker=False)
        self.ceremony = kit.Ceremony(online_description(self.context.keys, self.context.authority))
        self.context.repository.install(self.ceremony.document(), now=kit.NOW, actor="test")
        self._published = 0
        with self.context.database.session() as session:
            token = tokens.create(session, "ann", "operator")[1]
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}/api/v1", headers={"Authorization": f"Bearer {token}"}, timeout=20
        )
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGEWISE_SERVER_")}
        self.env = kept | {
            "EDGEWISE_SERVER_BROKER_PORT": str(broker.port),
            "EDGEWISE_SERVER_EMBEDDED_BROKER": "false",
            "EDGEWISE_SERVER_TICK_S": "0.05",
            "EDGEWISE_SERVER_DATABASE_URL": self.context.settings.url,
        }
        self.server = Server(folder, ["run", "--state", str(self.state), "--port", str(port)], self.env)
        self.devices: list[LightDevice] = []

    def add_devices(self, *names: str) -> None:
        with self.context.database.session() as session:
            for name in names:
                session.add(
                    Device(
                        id=name,
                        channel="lab",
                        certificate_serial=name,
                        certificate_not_after=utc_now() + timedelta(days=9),
                        facts=msgspec.to_builtins(FACTS),
                        simulated=True,
                    )
                )
        self.devices += [LightDevice(self.broker.port, name, self._verify) for name in names]

    def publish(self, versions: int) -> None:
        """Sign that many more versions."""
        first, self._published = self._published + 1, self._published + versions
        made = [self.kit.make_bundle(version=v, size=2_000) for v in range(first, self._published + 1)]
        self.kit.publish(self.context, self.ceremony, *made)

    def _verify(self, payload: bytes, device_id: str, accepted: Accepted) -> Any:
        trusted = self.ceremony.targets.signed
        return verify_assignment(
            payload, trusted, device_id=device_id, channel="lab", now=datetime.now(UTC), accepted=accepted
        )

    # -- what operators do, against a server that may die under them --------------------------

    def wait_for(self, what: str, look: Callable[[], Any], *, or_death: bool = False) -> Any:
        """The first true answer; None where the server died and that is an answer too."""
        deadline, pause = time.monotonic() + WAIT_S, threading.Event()
        while True:
            try:
                if found := look():
                    return found
            except httpx.TransportError:
                pass
            if self.server.dead:
                assert or_death, f"waiting for {what}: the server died: {self.server.log[-3000:]}"
                return None
            assert time.monotonic() < deadline, f"waiting for {what}: {self.server.log[-3000:]}"
            pause.wait(0.02)

    def start_server(self, kill: tuple[int, str] | None = None) -> None:
        self.server.start(kill)
        self.wait_for("the server", lambda: self.http.get("/health").status_code == 200)

    def ask_for_rollout(self, version: int) -> str:
        """Start a rollout under a name; empty where the server died before it answered. Asked again, it finds it."""
        name = f"to-{version}"
        try:
            for found in self.http.get("/rollouts").raise_for_status().json()["rollouts"]:
                if found["name"] == name:
                    return str(found["id"])
            body = {"model": "digits", "version": version, "group": "all", "phases": PHASES, "name": name}
            answer = self.http.post("/rollouts", json=body)
            assert answer.status_code == 201, answer.text
            return str(answer.json()["id"])
        except httpx.TransportError:
            return ""

    def rollout(self, rollout_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/rollouts/{rollout_id}").raise_for_status().json()
        return found

    def completed(self, rollout_id: str) -> bool:
        return bool(self.rollout(rollout_id)["status"] == "completed")

    def check(self, rollout_id: str, version: int) -> None:
        """Every device is on the version, by one assignment that was decided once and told as decided."""
        found = self.rollout(rollout_id)
        names = sorted(device.name for device in self.devices)
        assigned = [step["device_id"] for step in found["history"] if step["kind"] == "assign"]
        assert sorted(assigned) == names, found["history"]
        assert sorted(d["device_id"] for d in found["devices"]) == names
        assert {d["state"] for d in found["devices"]} == {"committed"}
        with self.context.database.session(read_only=True) as session:
            counters = {name: session.get(DirectorCounter, name).version for name in names}  # type: ignore[union-attr]
        for device in self.devices:
            assert device.refused == []
            assert device.active[0] == version, (device.name, device.active)
            numbers = [number for number, _ in device.seen]
            # one version a rollout: none was skipped, and none was given to two assignments
            assert numbers == list(range(1, counters[device.name] + 1)), (device.name, numbers)

    def close(self) -> None:
        for device in self.devices:
            device.close()
        self.http.close()
        self.server.close()
        self.context.close()
