"""A fleet in the open: Mosquitto with mutual TLS and an access list, as `init --broker mosquitto` wrote them.

`SecuredFleet` is a `Fleet` whose broker runs the very configuration of the state folder; `Cluster` is a PostgreSQL
server of its own.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

COMMAND_S = 150


def make(fleets: Any, folder: Path, tools: Any, bundles: Any, **options: Any) -> Any:
    """A secured fleet, not founded. `fleets` is the module `fleet`."""
    return _secured(fleets.Fleet)(folder, tools, bundles, **options)


def alive(fleet: Any) -> Iterator[Any]:
    """A founded fleet, until all of its processes have ended in order."""
    try:
        fleet.found()
        yield fleet
    finally:
        ended = fleet.end()
    for name, (status, log) in ended.items():
        assert status == 0, f"{name} did not end in order ({status}): {log[-2000:]}"
        assert "Traceback" not in log and '"trace"' not in log, f"{name} broke inside: {log[-6000:]}"


class Mosquitto:
    """The broker of a state folder, by its generated configuration and nothing else."""

    def __init__(self, folder: Path, state: Path, tools: Any) -> None:
        found = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        assert found is not None, "mosquitto is not installed: apt install mosquitto"
        self.port = tools.free_port()
        self.files = state / "broker"
        self._tools = tools
        command = [found, "-c", str(self.files / "mosquitto.conf")]
        self.process = tools.Process("mosquitto", command, dict(os.environ), folder / "mosquitto.log")

    def start(self) -> None:
        self.process.start()
        self._tools.wait_for("mosquitto listens", self._listens, 10)

    def _listens(self) -> bool:
        self.process.check()
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except ConnectionRefusedError:
            return False
        return True


def _secured(base: Any) -> Any:
    class SecuredFleet(base):  # type: ignore[misc]
        """Everything over mutual TLS. `database_url` empty: SQLite in the state folder."""

        def __init__(
            self, folder: Path, tools: Any, bundles: Any, *, database_url: str = "", init: tuple[object, ...] = ()
        ) -> None:
            super().__init__(folder, tools, bundles)
            self.broker = Mosquitto(folder, self.state, tools)
            self._init = init
            # These come from the server.toml that `init` writes.
            for name in ("EDGEWISE_SERVER_BROKER_PORT", "EDGEWISE_SERVER_EMBEDDED_BROKER"):
                del self.env[name]
            if database_url:
                self.env["EDGEWISE_SERVER_DATABASE_URL"] = database_url

        def found(self) -> None:
            """Init, server, ceremony; then the broker, whose certificates the ceremony made possible."""
            options = ("--broker", "mosquitto", "--broker-port", self.broker.port, *self._init)
            self.command("edgewise-server", "init", "--state", self.state, *options)
            self.env["EDGEWISE_TOKEN"] = (self.state / "admin.token").read_text().strip()
            self.start_server()
            channel = f"{self.channel}:auto"
            self.edgewise("keys", "init", self.keys, "--online", self.state / "online.json", "--channel", channel)
            self.edgewise("trust", "install", self.keys)
            self.broker.start()
            self.edgewise("group", "create", self.group)

        def tls(self, state: Path) -> ssl.SSLContext:
            """The TLS context of an enrolled device, by the files of its state folder."""
            identity = state / "identity"
            context = ssl.create_default_context(cafile=str(identity / "fleet-ca.pem"))
            context.load_cert_chain(identity / "certificate.pem", identity / "key.pem")
            return context

        def client(self, tls: ssl.SSLContext, **options: Any) -> Any:
            """A connected MQTT 5 client that is no agent: for what an intruder tries. The caller disconnects it."""
            return Client(self.broker.port, tls, self._tools, **options)

    return SecuredFleet


class Client:
    """Records what the broker tells it: `.outcome`, `.messages`, `.ended`."""

    def __init__(self, port: int, tls: ssl.SSLContext, tools: Any, client_id: str = "intruder") -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.outcome = ""
        self.ended = ""
        self._subscribed: dict[int, list[str]] = {}
        self._published: dict[int, str] = {}
        self._tools = tools
        self._client = client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5, reconnect_on_failure=False
        )
        client.tls_set_context(tls)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = lambda _c, _d, message: self.messages.append((message.topic, bytes(message.payload)))
        client.on_subscribe = lambda _c, _d, mid, reasons, _p: self._subscribed.update({mid: [str(r) for r in reasons]})
        client.on_publish = lambda _c, _d, mid, reason, _p: self._published.update({mid: str(reason)})
        try:
            client.connect("127.0.0.1", port)
        except OSError as error:
            self.outcome = self.ended = f"refused: {error}"
            return
        client.loop_start()
        tools.wait_for("the broker's answer", lambda: self.outcome or self.ended, 10, 0.01)

    @property
    def connected(self) -> bool:
        return self.outcome == "Success" and not self.ended

    def subscribe(self, *filters: str) -> list[str]:
        """Subscribe; the reason of each."""
        mid = self.ask(*filters)
        found: list[str] = self._tools.wait_for("a SUBACK", lambda: self._subscribed.get(mid), 10, 0.01)
        return found

    def ask(self, *filters: str) -> int:
        """Subscribe without waiting for the answer; the packet's id."""
        return int(self._client.subscribe([(name, 1) for name in filters])[1] or 0)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> str:
        """Publish with QoS 1; the reason of the broker's answer, or of the connection's end before it."""
        mid = self._client.publish(topic, payload, qos=1, retain=retain).mid
        found: str = self._tools.wait_for("a PUBACK", lambda: self._published.get(mid) or self.ended, 10, 0.01)
        return found

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.outcome = str(reason)

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.ended = str(reason)


class Cluster:
    """A PostgreSQL server on a socket in a folder of its own; a context manager that gives the URL of a database."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="ew-pg-")
        # PostgreSQL refuses to run as root.
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self._folder, self._user)

    def __enter__(self) -> str:
        """SQLAlchemy's URL of an empty database."""
        data = f"{self._folder}/data"
        self._run("initdb", "-D", data, "-U", "edgewise", "-A", "trust", "--no-sync", "-E", "UTF8")
        options = f"-k {self._folder} -c listen_addresses= -c fsync=off -c max_connections=60"
        self._run("pg_ctl", "-D", data, "-l", f"{self._folder}/log", "-o", options, "-w", "start")
        self._run("createdb", "-h", self._folder, "-U", "edgewise", "fleet")
        return f"postgresql+psycopg://edgewise@/fleet?host={self._folder}"

    def __exit__(self, *_: object) -> None:
        self._run("pg_ctl", "-D", f"{self._folder}/data", "-m", "fast", "-w", "stop")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, *words: str) -> None:
        log = Path(self._folder) / "commands.log"
        with log.open("ab") as out:
            # A pipe would be held open by the server that pg_ctl starts.
            status = subprocess.run(
                words,
                user=self._user,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                timeout=COMMAND_S,
                check=False,
            ).returncode
        assert status == 0, log.read_text(errors="replace")[-2000:]


def has_postgresql() -> bool:
    """Whether the programs of a PostgreSQL server are installed."""
    return all(shutil.which(name) for name in ("initdb", "pg_ctl", "createdb"))
