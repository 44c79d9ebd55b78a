"""Fixtures of the attacks: one fleet in the open, with two devices behind a network that can turn hostile."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

TESTS = Path(__file__).resolve().parents[1]
PI, PC = "raspberry-pi-5", "x86-64"
MODEL, FLOOR = "meter", 2
VERSIONS = 60
AT_ONCE = ("--phase", "100")
TIMESTAMP_S = 12.0
"""Life of the fleet's timestamp: a freeze is noticed when it is over."""


def _load(name: str, path: Path) -> Any:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def attacker() -> Any:
    """The module `attacker`."""
    return _load("attacks_attacker", TESTS / "attacks" / "attacker.py")


@pytest.fixture(scope="session")
def networks() -> Any:
    """The module `network`."""
    return _load("attacks_network", TESTS / "attacks" / "network.py")


@pytest.fixture(scope="session")
def bundles() -> Any:
    """The module `bundles` of the end-to-end tests."""
    return _load("end_to_end_bundles", TESTS / "end_to_end" / "bundles.py")


@pytest.fixture(scope="session")
def tools() -> Any:
    return _load("end_to_end_processes", TESTS / "end_to_end" / "processes.py")


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory, bundles: Any, tools: Any) -> Iterator[Any]:
    """Mosquitto with mutual TLS and its access list, the server, and no device yet. All must end in order."""
    fleets = _load("end_to_end_fleet", TESTS / "end_to_end" / "fleet.py")
    secured = _load("end_to_end_secured", TESTS / "end_to_end" / "secured.py")
    made = secured.make(fleets, tmp_path_factory.mktemp("fleet"), tools, bundles)
    made.env["EDGEWISE_SERVER_BROKER_PUBLIC_PORT"] = str(tools.free_port())
    made.env["EDGEWISE_SERVER_TIMESTAMP_DAYS"] = str(TIMESTAMP_S / 86_400)
    made.env["EDGEWISE_SERVER_RENEWAL_CHECK_S"] = "0.5"
    try:
        made.found()
        yield made
    finally:
        ended = made.end()
    for name, (status, log) in ended.items():
        assert status == 0, f"{name} did not end in order ({status}): {log[-2000:]}"
        assert "Traceback" not in log and '"trace"' not in log, f"{name} broke inside: {log[-6000:]}"


class Scene:
    """The fleet, the device under attack, and what is looked at in every attack."""

    def __init__(self, fleet: Any, bundles: Any, network: Any, attacker: Any) -> None:
        self.fleet, self.network, self.bundles, self.attacker = fleet, network, bundles, attacker
        self.thief = attacker.Thief(fleet)
        self.victim = fleet.device("porch")
        self.version = FLOOR
        self._jump = 0
        self._claims: dict[str, int] = {}
        self._api = f"{fleet.env['EDGEWISE_SERVER']}/api/v1"
        self._who = {"Authorization": f"Bearer {fleet.env['EDGEWISE_TOKEN']}"}
        self._began = time.time()

    def path(self, version: int, board: str = PI, channel: str = "lab") -> str:
        return f"{channel}/{MODEL}/{board}/{version}.ewb"

    def bundle(self, version: int, board: str = PI, channel: str = "lab") -> Any:
        """What the offline keys signed."""
        return self.thief.signed(self.path(version, board, channel))

    def offer_bytes(self, version: int, board: str = PI) -> None:
        """Retain a bundle's chunks and its chunk index, as the server does for what it assigns."""
        self.thief.retain((self.fleet.folder / "bundles" / f"{MODEL}-{version}-{board}.ewb").read_bytes())

    @property
    def next(self) -> int:
        """A signed version that the victim has never seen."""
        return self.version + 1

    @property
    def accepted(self) -> int:
        """The assignment version that the victim accepted last: a forged one of this version is not too old."""
        return int(_installed(self.victim)["assignment_version"])

    def begin(self) -> None:
        self._began = time.time()

    def serves(self, version: int | None = None) -> None:
        """The victim answers, with the numbers of the version that it ran before the attack."""
        version, x = version or self.version, self.bundles.samples(5)
        answered, logits = self.victim.infer(MODEL, x)
        assert answered == version
        np.testing.assert_allclose(logits, self.bundles.logits_of(MODEL, version, PI, x), atol=1e-4)

    def events(self, kind: str = "security") -> list[dict[str, Any]]:
        """What the server has been told by the victim since the attack began, newest first."""
        found = self.fleet.get("/devices/porch/events", limit=200)["events"]
        return [
            e for e in found if e["kind"] == kind and datetime.fromisoformat(e["at"]).timestamp() >= self._began - 0.5
        ]

    def told(self, code: str, kind: str = "security", timeout_s: float = 30.0, word: str = "") -> dict[str, Any]:
        """The event with which the victim names the cause, as the operator sees it; the old version serves on."""
        found: dict[str, Any] = self.fleet.wait_for(
            f"the event {code}",
            lambda: next(
                (e for e in self.events(kind) if code in (e["code"], e["data"].get("reason")) and word in e["text"]),
                None,
            ),
            timeout_s,
        )
        self.serves()
        return found

    def refuses(self, code: str, timeout_s: float = 30.0, word: str = "") -> dict[str, Any]:
        """An assignment is refused: an event, and the same code in what the device reports of itself."""
        found = self.told(code, timeout_s=timeout_s, word=word)
        self.fleet.wait_for(
            f"the report of {code}",
            lambda: (self.fleet.get("/devices/porch")["reported"] or {}).get("error_code") == code,
            timeout_s,
        )
        return found

    def assign(self, document: bytes) -> None:
        """Put an assignment where the victim looks for its own."""
        self.thief.say("ew/1/dev/porch/assignment", document)

    def lies(self, forged: dict[str, Any], *, jump: int = 10, claim: dict[str, int] | None = None) -> dict[str, bytes]:
        """A forged repository, newer than every one before it."""
        self._jump += jump
        found: dict[str, bytes] = self.thief.repository(
            forged, jump=self._jump, claim={**self._claims, **(claim or {})}
        )
        # What a snapshot has named once, a device misses in the next.
        self._claims |= {name: role.signed.version for name, role in forged.items() if name != "targets"}
        return found

    @contextlib.contextmanager
    def lying(self, documents: dict[str, bytes]) -> Iterator[None]:
        """The victim finds these documents on their topics, whatever the honest server publishes meanwhile."""
        said = [topic for topic in documents if not self.thief.hear(topic)]
        for topic in said:
            self.thief.say(topic, documents[topic])
        try:
            with self.network.hostile(
                self.thief, lambda device, topic, true: documents.get(topic, true) if device == "porch" else true
            ):
                yield
        finally:
            for topic in said:
                self.thief.say(topic, b"")

    # -- devices -----------------------------------------------------------------------------

    def enrolment_file(self, name: str, group: str = "") -> Path:
        out: Path = self.fleet.folder / f"{name}.enrol.json"
        options = ("--channel", "lab", "--name", name, "--keys", self.fleet.keys, "--out", out)
        self.fleet.edgewise("device", "enrol-file", *options, *(("--group", group) if group else ()))
        return out

    def enrol(self, name: str, group: str) -> Any:
        """A device outside of the group that rollouts of these tests reach."""
        state = self.fleet.folder / name
        file = self.enrolment_file(name, group)
        self.fleet.command("edgewise-agent", "enrol", file, "--state", state, "--simulated-board", PI)
        return self.run_copy(name, self.victim)

    def run_copy(self, name: str, like: Any) -> Any:
        """A device of a state folder that lies in the fleet's; it does not run yet."""
        tools, state = self.fleet._tools, self.fleet.folder / name
        command = [tools.program("edgewise-agent"), "run", "--state", str(state)]
        process = tools.Process(name, command, like.process._env, self.fleet.folder / f"{name}.log")
        device = type(like)(name, PI, state, process)
        self.fleet.devices.append(device)
        return device

    def fails(self, name: str, *arguments: object) -> str:
        """What a command says that must not succeed."""
        status, out, err = self.fleet._run(name, arguments)
        assert status != 0, f"{name} {arguments} succeeded: {out}"
        return str(out + err)

    def status_of(self, device: Any) -> str:
        """`edgewise-agent status --json` of a device."""
        return str(self.fleet.command("edgewise-agent", "status", "--state", device.state, "--json"))

    def alerts(self, kind: str) -> set[str]:
        return {a["device_id"] for a in self.fleet.get("/alerts", open="true")["alerts"] if a["kind"] == kind}

    def told_so_far(self, leaf: str) -> int:
        """Messages of the victim that the server has stored since the attack began."""
        found = self.fleet.get(f"/devices/porch/{leaf}", limit=1000)[leaf]
        return sum(datetime.fromisoformat(message["at"]).timestamp() >= self._began for message in found)

    # -- rollouts ----------------------------------------------------------------------------

    def start(self, version: int, model: str = MODEL, confirm_within_s: int = 600, group: str = "") -> str:
        """What an operator's `edgewise rollout start` asks the server for; the rollout's id."""
        body = {
            "model": model,
            "version": version,
            "group": group or self.fleet.group,
            "phases": [{"percent": 100}],
            "gates": {"max_failed_ratio": 0, "on_breach": "abort"},
            "confirm_within_s": confirm_within_s,
            "offline_after_s": 300,
        }
        answer = httpx.post(f"{self._api}/rollouts", json=body, headers=self._who, timeout=20)
        answer.raise_for_status()
        return str(answer.json()["id"])

    def ended(self, rollout: str, status: str) -> dict[str, Any]:
        """The rollout, once it has ended as it must; by device id what became of each in `outcomes`."""
        found: dict[str, Any] = self.fleet.wait_for(
            f"the rollout is {status}", lambda: (r := self.fleet.rollout(rollout))["status"] != "running" and r, 60
        )
        assert found["status"] == status, found
        return {**found, "outcomes": {d["device_id"]: d["error_code"] for d in found["devices"]}}

    def works(self, confirm_within_s: int = 600) -> None:
        """The control: what the operator does in order still reaches both devices."""
        self.version = self.next
        self.ended(self.start(self.version, confirm_within_s=confirm_within_s), "completed")
        self.fleet.wait_for("the honest version", lambda: self.victim.serves(MODEL) == self.version)
        self.serves()


def _installed(device: Any) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads((device.state / "installed.json").read_bytes())
    return found


@pytest.fixture(scope="session")
def _scene(fleet: Any, bundles: Any, attacker: Any, networks: Any) -> Iterator[Scene]:
    network = networks.OnPath(int(fleet.env["EDGEWISE_SERVER_BROKER_PUBLIC_PORT"]), fleet.broker.port)
    try:
        for name in ("porch", "office"):
            device = fleet.enrol(name, PI)
            data = fleet.folder / f"{name}.safetensors"
            save_file({"x": np.zeros((8, 4), np.float32), "y": np.zeros(8, np.int64)}, data)
            fleet.start_device(
                device, train_data=data, refresh_interval_s=1, want_wait_s=0.5, want_attempts=1, resend_s=3
            )
        signed = [(version, PI) for version in range(1, VERSIONS + 1)] + [(VERSIONS, PC)]
        folder = fleet.folder / "bundles"
        fleet.release(MODEL, [bundles.inference_bundle(folder, MODEL, *each) for each in signed])
        fleet.edgewise("keys", "set-floor", fleet.keys, MODEL, FLOOR)
        scene = Scene(fleet, bundles, network, attacker)
        for device in fleet.devices:
            fleet.wait_for(f"{device.name} is online", lambda name=device.name: fleet.get(f"/devices/{name}")["online"])
        scene.ended(scene.start(FLOOR), "completed")
        yield scene
    finally:
        network.close()


@pytest.fixture
def scene(_scene: Scene) -> Scene:
    """One version serves, a newer one is signed; nothing is wrong."""
    _scene.begin()
    _scene.serves()
    return _scene
