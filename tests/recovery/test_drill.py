"""The danger: the server's keys are stolen, and the fleet can only be saved by walking from device to device.

The drill: the thief has the whole state folder of the server and uses all of it. The operator replaces the online
keys by the offline ones, as docs/operating/recovery.md says, and touches no device. Within one check-in all devices
must be healthy: by new keys, new certificates and a new rollout; and none may have failed a local request meanwhile.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from edgewise_agent.identity.certificates import sha256_of
from edgewise_protocol import topics
from edgewise_protocol.renewal import signed_bytes

BOARD, MODEL = "raspberry-pi-5", "meter"
BOUND = 2**20
"""Versions by which an assignment may jump forward at most."""
PATIENCE_S = 240.0
"""For what is prepared; the recovery itself has `check_in_s`."""


@dataclass(frozen=True)
class Drill:
    """How many devices, how many in one process, and how often a device checks in at the latest."""

    devices: int
    per_process: int
    check_in_s: float
    pace_s: float
    """Mean seconds between two local requests to a device."""

    @property
    def settings(self) -> dict[str, Any]:
        """An hour of a real fleet in one check-in: the proportions of the defaults, but for what is said here."""
        quick = {"min_inferences": 5, "seconds": 1.0}
        return {
            "http_port": 0,
            "refresh_interval_s": self.check_in_s / 1.2,  # each wait is up to a fifth longer
            "reconnect_min_s": 0.5,
            "reconnect_max_s": self.check_in_s / 6,
            "retry_min_s": 1.0,
            "retry_max_s": self.check_in_s / 6,
            "telemetry_interval_s": 30.0,
            "min_free_mib": 1,
            "log_level": "warning",
            "probation": quick,
            "identity": {
                "look_s": self.check_in_s / 10,
                "retry_min_s": self.check_in_s / 20,
                "retry_max_s": self.check_in_s / 4,
            },
        }


DRILLS = [
    pytest.param(Drill(8, 4, 30.0, 0.25), id="8-devices", marks=[pytest.mark.slow, pytest.mark.timeout(400)]),
    pytest.param(
        Drill(int(os.environ.get("EDGEWISE_DRILL_DEVICES", "200")), 50, 120.0, 1.0),
        id="200-devices",
        marks=[pytest.mark.slow, pytest.mark.timeout(1500)],
    ),
]


class Scene:
    """A fleet in the open, its crowd of devices, and the operator's hand."""

    def __init__(self, fleet: Any, crowd: Any, bundles: Any, drill: Drill) -> None:
        self.fleet, self.crowd, self.bundles, self.drill = fleet, crowd, bundles, drill
        self.api = f"{fleet.env['EDGEWISE_SERVER']}/api/v1"

    def post(self, path: str, body: dict[str, Any]) -> Any:
        who = {"Authorization": f"Bearer {self.fleet.env['EDGEWISE_TOKEN']}"}
        answer = httpx.post(f"{self.api}{path}", json=body, headers=who, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def roll_out(self, version: int) -> str:
        """Start a rollout to all at once, whose gate bears no failure; its id."""
        body = {
            "model": MODEL,
            "version": version,
            "group": self.fleet.group,
            "phases": [{"percent": 100}],
            "gates": {"max_failed_ratio": 0, "on_breach": "abort"},
            "confirm_within_s": 600,
            "offline_after_s": 300,
        }
        return str(self.post("/rollouts", body)["id"])

    def completed(self, rollout: str) -> None:
        def ended() -> Any:
            found = self.fleet.rollout(rollout)
            return found if found["status"] != "running" else None

        found = self.fleet.wait_for("the rollout ends", ended, PATIENCE_S, 0.5)
        assert found["status"] == "completed", {k: found[k] for k in ("status", "reason")}

    def signed_by(self, role: str) -> str:
        """The key by which the root that the operator holds has a role signed."""
        roots = sorted(self.fleet.keys.glob("**/*root.json"), key=lambda path: path.stat().st_mtime)
        found = max((json.loads(path.read_bytes())["signed"] for path in roots), key=lambda signed: signed["version"])
        (keyid,) = found["roles"][role]["keyids"]
        return str(keyid)

    def intermediate(self) -> str:
        """SHA-256 of the intermediate that the server issues by."""
        pem: str = self.fleet.get("/trust")["intermediate_pem"]
        return sha256_of(x509.load_pem_x509_certificate(pem.encode()))

    def tell(self, text: str) -> None:
        print(f"drill: {text}", flush=True)


@pytest.fixture(params=DRILLS)
def scene(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    bundles: Any,
    fleets: Any,
    tools: Any,
    secured: Any,
    crowds: Any,
) -> Iterator[Scene]:
    drill: Drill = request.param
    fleet = secured.make(fleets, tmp_path_factory.mktemp("fleet"), tools, bundles)
    # All devices of the drill have one address, which is no more than a site behind one router.
    fleet.env["EDGEWISE_SERVER_ENROL_PER_MINUTE"] = "10000"
    fleet.env["EDGEWISE_SERVER_RENEW_PER_MINUTE"] = "10000"
    fleet.env["EDGEWISE_SERVER_TICK_S"] = "0.5"
    crowd = None
    try:
        fleet.found()
        crowd = crowds.Crowd(fleet, drill.devices, drill.per_process, drill.settings)
        for n, worker in enumerate(crowd.workers):
            name = crowd.names[n * drill.per_process]
            fleet.devices.append(fleets.Device(name, BOARD, crowd.state(name), worker))
        yield Scene(fleet, crowd, bundles, drill)
    finally:
        ended = fleet.end()
    for name, (status, log) in ended.items():
        assert status == 0, f"{name} did not end in order ({status}): {log[-2000:]}"
        assert "Traceback" not in log and '"trace"' not in log, f"{name} broke inside: {log[-6000:]}"


def test_all_devices_are_healthy_within_one_check_in(scene: Scene, attacker: Any, crowds: Any, tools: Any) -> None:
    fleet, crowd, drill = scene.fleet, scene.crowd, scene.drill
    begun = time.monotonic()
    _found(scene)
    thief = Thief(scene, attacker, tools)
    scene.tell(f"{drill.devices} devices serve version 1 after {time.monotonic() - begun:.0f} s")
    thief.uses_everything()
    scene.tell("the thief has put all devices forward to the bound; every signature of the honest server is too old")

    # -- the recovery, as docs/operating/recovery.md has it ------------------------------------
    fleet.start_server()
    token = fleet.command(
        "edgewise-server", "token", "--state", fleet.state, "--name", "after", "--role", "admin", "--revoke-others"
    )
    fleet.env["EDGEWISE_TOKEN"] = token.split()[-1]
    fleet.command("edgewise-server", "rotate-keys", "--state", fleet.state)
    fleet.edgewise("keys", "rotate-online", fleet.keys, "--online", fleet.state / "online.json")
    before = {name: stands["serial"] for name, stands in crowd.look().items()}
    asleep = crowd.names[1]
    crowd.sleep(asleep)
    old = scene.intermediate()
    installed = time.time()
    fleet.edgewise("trust", "install", fleet.keys)
    said = time.time() - installed
    new = scene.intermediate()
    assert new != old
    keys = {f"{role}_key": scene.signed_by(role) for role in ("timestamp", "snapshot")}
    crowd.all("goal", model=MODEL, version=2, intermediate=new, **keys)
    rollout = scene.roll_out(2)

    def healthy(stands: dict[str, Any]) -> bool:
        return all(stands["reached"].values())

    crowd.wait_for("all devices that are on are healthy", healthy, PATIENCE_S, but=(asleep,))
    woken = time.time()
    crowd.wake(asleep)
    crowd.wait_for("the device that was off is healthy", healthy, PATIENCE_S)
    stands = crowd.look()
    awake = max(stands.pop(asleep)["reached"].values()) - woken
    reached = [device["reached"] for device in stands.values()]
    late = [name for name, d in stands.items() if max(d["reached"].values()) - installed > drill.check_in_s]
    failed = sum(device["asked"]["failed"] for device in stands.values())
    answered = sum(device["asked"]["answered"] for device in stands.values())
    scene.tell(f"N = {drill.devices}; a check-in is {drill.check_in_s:g} s; `trust install` took {said:.1f} s")
    for what, word in (
        ("renewed", "online with a certificate of the new intermediate"),
        ("metadata", "metadata by the new keys accepted"),
        ("committed", "version 2 committed"),
        ("answered", "local requests answered by version 2"),
    ):
        scene.tell(f"from `trust install` to {word}: {crowds.seconds((r[what] for r in reached), installed)}")
    scene.tell(f"local requests: {answered} answered, {failed} failed")
    scene.tell(f"devices that needed more than one check-in: {len(late)}")
    scene.tell(f"a device that was off during all of it is healthy {awake:.1f} s after it was switched on")
    assert failed == 0, [d["asked"]["errors"] for d in stands.values() if d["asked"]["failed"]][:5]
    assert all(device["asked"]["answered"] >= 10 for device in stands.values())
    assert all(device["serial"] != before[name] for name, device in crowd.look().items())
    scene.completed(rollout)
    _server_agrees(scene)
    thief.is_worth_nothing()
    used = crowd.all("look")
    cpu, resident = sum(u["cpu_s"] for u in used), sum(u["resident_mib"] for u in used)
    scene.tell(
        f"all devices together: {cpu:.0f} s of CPU, {resident:.0f} MiB, {sum(u['threads'] for u in used)} threads"
    )
    assert late == []
    assert awake <= drill.check_in_s


def _found(scene: Scene) -> None:
    """Enrol all, sign versions 1 to 3, roll the first out, and begin to ask."""
    fleet, crowd = scene.fleet, scene.crowd
    crowd.enrol(BOARD, fleet.group)
    crowd.all("start")
    crowd.wait_for("all devices are online", lambda d: bool(d["online"]), PATIENCE_S)
    fleet.publish(MODEL, 1, 2, 3)
    rollout = scene.roll_out(1)
    crowd.wait_for("all devices have version 1", lambda d: d["models"].get(MODEL, {}).get("version") == 1, PATIENCE_S)
    x = scene.bundles.samples(1)
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.reshape(-1).tolist()}
    answers = {v: scene.bundles.logits_of(MODEL, v, BOARD, x).reshape(-1).tolist() for v in (1, 2)}
    body = json.dumps({"inputs": [tensor]})
    crowd.all("probe", model=MODEL, body=body, answers=answers, pause_s=scene.drill.pace_s)
    scene.completed(rollout)
    crowd.wait_for("all have committed it", lambda d: d["models"][MODEL]["state"] == "committed", PATIENCE_S)


def _server_agrees(scene: Scene) -> None:
    """The certificates that devices hold are the ones that the server has seen in use."""

    def agrees() -> bool:
        database = sqlite3.connect(f"file:{scene.fleet.state / 'server.db'}?mode=ro", uri=True)
        try:
            rows = database.execute("select id, certificate_serial, next_serial from devices").fetchall()
        finally:
            database.close()
        held = {name: stands["serial"] for name, stands in scene.crowd.look().items()}
        if {(name, serial, "") for name, serial in held.items()} != set(rows):
            return False
        # Who holds a certificate that is revoked meanwhile is sent away, and comes again with the new one.
        pages = scene.fleet.get("/devices", limit=1000)["items"]
        return len(pages) == scene.drill.devices and all(device["online"] for device in pages)

    scene.fleet.wait_for("the server has seen every new certificate in use", agrees, PATIENCE_S, 0.5)


class Thief:
    """Has a copy of the server's whole state folder, and the address of everything."""

    def __init__(self, scene: Scene, attacker: Any, tools: Any) -> None:
        self._scene, self._fleet, self._tools = scene, scene.fleet, tools
        self._hand = attacker.Thief(scene.fleet)
        self._copy: Path = scene.fleet.folder / "stolen"
        shutil.copytree(scene.fleet.state, self._copy, ignore=shutil.ignore_patterns("blobs", "uploads", "*.pid"))
        self._token = (self._copy / "admin.token").read_text().strip()
        self._bundle = {v: self._hand.signed(f"lab/{MODEL}/{BOARD}/{v}.ewb") for v in (1, 3)}
        self._repository = self._hand.repository({}, jump=1_000_000_000)
        self._key = ec.generate_private_key(ec.SECP256R1())

    def uses_everything(self) -> None:
        """The server is down by his hand; in its name he puts every device as far forward as it goes."""
        crowd, fleet = self._scene.crowd, self._fleet
        versions = {name: d["assignment_version"] for name, d in crowd.look().items()}
        assert self._ask("/tokens").status_code == 200, "the control: the stolen token works"
        assert fleet.server.stop() == 0
        documents = dict(self._repository)
        for name, version in versions.items():
            far = self._hand.assignment(name, self._bundle[1], version=version + BOUND)
            documents[topics.device(name, "assignment")] = far
        self._say(documents)
        crowd.wait_for("all devices go along", lambda d: d["assignment_version"] > BOUND, PATIENCE_S)
        # Even he cannot have them run what nobody has signed, or jump over the bound.
        victim = crowd.names[-1]
        beyond = self._hand.assignment(victim, self._bundle[1], version=versions[victim] + 2 * BOUND + 1)
        self._refused(victim, beyond, "assignment-version-jump")
        unsigned = self._hand.assignment(victim, self._unsigned(), version=versions[victim] + BOUND + 1)
        self._refused(victim, unsigned, "assignment-unknown-target")

    def is_worth_nothing(self) -> None:
        """After the recovery: each thing that he holds, tried where it worked before."""
        scene, victim = self._scene, self._scene.crowd.names[0]
        version = scene.crowd.look()[victim]["assignment_version"]
        found = {
            "assignment": self._refused(victim, self._assignment(victim, version), "assignment-unsigned"),
            "timestamp": self._timestamp(victim),
            "device certificate at the broker": self._at_the_broker(victim),
            "device certificate at POST /renew": self._at_renewal(victim),
            "server certificate at the broker": self._at_the_broker("edgewise-server"),
            "broker certificate to a device": self._as_broker(victim),
            "token": self._by_token(),
        }
        for what, seen in found.items():
            scene.tell(f"the thief's {what}: {seen}")

    # -- what he tries -----------------------------------------------------------------------

    def _say(self, documents: dict[str, bytes]) -> None:
        """Retain documents in the server's name, over one connection."""
        client = self._fleet.client(self._hand.as_client("edgewise-server"))
        assert client.connected, client.outcome
        try:
            for topic, payload in documents.items():
                assert client.publish(topic, payload, retain=True) in ("Success", "No matching subscribers")
        finally:
            client.close()

    def _unsigned(self) -> Any:
        from msgspec.structs import replace

        true = self._bundle[3]
        return replace(true, path=f"lab/{MODEL}/{BOARD}/9.ewb", custom=replace(true.custom, version=9))

    def _assignment(self, name: str, version: int) -> bytes:
        forged: bytes = self._hand.assignment(name, self._bundle[3], version=version + 1)
        return forged

    def _refused(self, name: str, document: bytes, code: str) -> str:
        """The code by which a device refuses an assignment that it is handed; it serves on."""
        crowd = self._scene.crowd
        crowd.hand(name, document)

        def refused() -> str:
            found: str = crowd.look()[name]["error_code"]
            return found if found == code else ""

        seen = self._fleet.wait_for(f"{name} refuses {code}", refused, 60, 0.2)
        return str(seen)

    def _timestamp(self, name: str) -> str:
        """A timestamp by the stolen key, newer than all, where devices read theirs: as a broker that he owned would.

        He himself cannot put it there any more; the server's new certificate does it for him.
        """
        topic = topics.metadata("timestamp.json")
        self._carry(topic, self._repository[topic])
        try:
            return self._refused(name, self._assignment(name, 1), "metadata-unsigned")
        finally:
            honest = self._hand.read("timestamp.json")
            self._carry(topic, honest)

    def _carry(self, topic: str, payload: bytes) -> None:
        """Publish under the server's own name; the server comes back under it at once, and cuts the courier off."""
        for _ in range(5):
            courier = self._fleet.client(self._courier())
            try:
                if courier.publish(topic, payload, retain=True) in ("Success", "No matching subscribers"):
                    return
            except AssertionError:
                continue
            finally:
                courier.close()
        raise AssertionError("the courier is never heard")

    def _courier(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self._scene.crowd.state("d-000") / "identity/fleet-ca.pem"))
        context.load_cert_chain(self._fleet.broker.files / "server.pem")
        return context

    def _at_the_broker(self, name: str) -> str:
        client = self._fleet.client(self._hand.as_client(name), client_id=name)
        connected = client.connected
        client.close()
        assert not connected, f"{name} is let in"
        # paho keeps to itself by which alert of TLS the broker refuses a certificate.
        with socket.create_connection(("127.0.0.1", self._fleet.broker.port), 10) as line:
            try:
                with self._hand.as_client(name).wrap_socket(line, server_hostname="127.0.0.1") as raw:
                    raw.recv(1)
            except ssl.SSLError as refusal:
                return str(refusal.reason)
        raise AssertionError(f"{name} is let in")

    def _at_renewal(self, name: str) -> str:
        """With a certificate in the device's name, and a key that the server has never seen."""
        api, key = self._scene.api, self._key
        nonce = httpx.post(f"{api}/renew/nonce", json={"device_id": name}, timeout=20).json()["nonce"]
        csr = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256())
        pem = csr.public_bytes(Encoding.PEM).decode()
        body = {
            "device_id": name,
            "nonce": nonce,
            "csr_pem": pem,
            "public_key_pem": key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
            "signature": key.sign(signed_bytes(name, nonce, pem), ec.ECDSA(hashes.SHA256())).hex(),
        }
        answer = httpx.post(f"{api}/renew", json=body, timeout=20)
        assert (answer.status_code, answer.json()["code"]) == (403, "device-key-unknown")
        return f"{answer.status_code} {answer.json()['code']}"

    def _as_broker(self, name: str) -> str:
        """He stands in for the broker, by its stolen certificate: the device's own TLS context must refuse it."""
        from datetime import UTC, datetime

        from edgewise_agent.identity.identity import inspect_identity

        identity = inspect_identity(self._scene.crowd.state(name), datetime.now(UTC))
        mine = identity.tls()
        assert mine is not None
        socket.create_connection(("127.0.0.1", self._fleet.broker.port), 10).close()
        with socket.create_connection(("127.0.0.1", self._fleet.broker.port), 10) as honest:
            mine.wrap_socket(honest, server_hostname="127.0.0.1").close()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            server = threading.Thread(target=self._greet, args=(listening,))
            server.start()
            try:
                with socket.create_connection(listening.getsockname(), 10) as line:
                    mine.wrap_socket(line, server_hostname="127.0.0.1").close()
            except ssl.SSLCertVerificationError as refusal:
                return str(refusal.verify_message)
            finally:
                server.join(20)
        raise AssertionError("the device takes the thief for its broker")

    def _greet(self, listening: socket.socket) -> None:
        listening.settimeout(10)
        line, _ = listening.accept()
        line.settimeout(10)
        try:
            self._hand.as_broker().wrap_socket(line, server_side=True).close()
        except OSError:
            line.close()

    def _ask(self, path: str) -> httpx.Response:
        return httpx.get(f"{self._scene.api}{path}", headers={"Authorization": f"Bearer {self._token}"}, timeout=20)

    def _by_token(self) -> str:
        answer = self._ask("/tokens")
        assert answer.status_code == 401
        return f"{answer.status_code} {answer.json()['code']}"
