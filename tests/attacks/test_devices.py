"""The danger: one device in wrong hands, or one file on the way to it, opens the fleet.

The attacker holds a device's key, a copy of its disk, or its enrolment file: enough to be that device, and no other.
"""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
from edgewise_protocol import topics

pytestmark = pytest.mark.slow

TELEMETRY = "ew/1/dev/porch/telemetry"


@pytest.fixture(scope="module")
def insiders(_scene: Any) -> Iterator[tuple[Any, Any]]:
    """Two devices of the fleet in wrong hands, in a group of their own; they run the model, and are off now."""
    fleet = _scene.fleet
    fleet.edgewise("group", "create", "insiders")
    devices = _scene.enrol("insider", "insiders"), _scene.enrol("twin", "insiders")
    for device in devices:
        fleet.start_device(device, refresh_interval_s=1)
        fleet.wait_for(f"{device.name} is online", lambda name=device.name: fleet.get(f"/devices/{name}")["online"])
    _scene.ended(_scene.start(_scene.version, group="insiders"), "completed")
    for device in devices:
        assert device.process.stop() == 0
    yield devices
    for device in devices:
        fleet.devices.remove(device)
        device.process.stop()


@pytest.fixture
def insider(insiders: tuple[Any, Any]) -> Any:
    return insiders[0]


@pytest.fixture
def twin(insiders: tuple[Any, Any]) -> Any:
    return insiders[1]


def test_reading_and_writing_anothers_topics(scene: Any, insider: Any) -> None:
    seen = scene.told_so_far("telemetry")
    intruder = scene.fleet.client(scene.fleet.tls(insider.state))
    assert intruder.outcome == "Success", "the control: it may connect, as itself"
    intruder.subscribe("#", "ew/1/#", "ew/1/dev/+/+", TELEMETRY, "ew/1/dev/porch/assignment", "ew/1/server/state")
    for leaf in ("assignment", "ack", "status", "event", "telemetry", "want", "update-ready"):
        assert intruder.publish(topics.device("porch", leaf), b"{}") == "Not authorized", leaf
    for topic in (topics.metadata("timestamp.json"), topics.SENTINEL, topics.round_offer("r"), "ew/1/dev/insider/ack"):
        assert intruder.publish(topic, b"{}", retain=True) == "Not authorized", topic
    own = intruder.publish(topics.device("insider", "want"), b"{}")
    assert own in ("Success", "No matching subscribers"), "the control: its own topic"
    scene.fleet.wait_for("two more of porch's messages", lambda: scene.told_so_far("telemetry") >= seen + 2)
    heard = {topic for topic, _ in intruder.messages}
    assert "ew/1/dev/insider/assignment" in heard, "the control: what is meant for it"
    assert topics.metadata("timestamp.json") in heard, "the control: what is meant for all"
    assert not [topic for topic in heard if "/dev/" in topic and "/dev/insider/" not in topic]
    assert "ew/1/server/state" not in heard
    intruder.close()
    scene.works()


def test_an_intruder_in_a_shared_subscription(scene: Any, insider: Any) -> None:
    """Members of a shared subscription divide its messages: whoever joins the server's swallows some of them."""
    intruder = scene.fleet.client(scene.fleet.tls(insider.state))
    groups = ("edgewise", "server", "bridge", "edgewise-server", "ingest")
    for group in groups:
        intruder.subscribe(*(f"$share/{group}/ew/1/dev/+/{leaf}" for leaf in ("event", "telemetry", "status")))
        intruder.subscribe(f"$share/{group}/ew/1/#")
    before = scene.told_so_far("telemetry")
    scene.works()
    scene.fleet.wait_for("porch's telemetry", lambda: scene.told_so_far("telemetry") >= before + 3)
    assert not [topic for topic, _ in intruder.messages if "/dev/porch/" in topic]
    intruder.close()
    # The control: the same subscription by one who may read does swallow them.
    scene.fleet.wait_for("a message for the group", lambda: _swallows(scene))
    scene.works()


def _swallows(scene: Any) -> bool:
    """Whether one who has the server's name gets a message before the server has taken its place back."""
    thief = scene.fleet.client(scene.thief.as_client("edgewise-server"))
    thief.ask("$share/edgewise/ew/1/dev/+/telemetry")
    scene.fleet.wait_for("a message, or the end of the connection", lambda: thief.messages or thief.ended)
    thief.close()
    return TELEMETRY in [topic for topic, _ in thief.messages]


def test_stolen_enrolment_token(scene: Any) -> None:
    """A copy of the file is worth nothing once it was used; and if the thief is first, the rightful device says so."""
    fleet, folder = scene.fleet, scene.fleet.folder
    used = folder / "porch.enrol.json"
    told = scene.fails("edgewise-agent", "enrol", used, "--state", folder / "stolen", "--simulated-board", "x86-64")
    assert "enrolment-used" in told
    fresh = scene.enrolment_file("fresh")
    fleet.command("edgewise-agent", "enrol", fresh, "--state", folder / "first", "--simulated-board", "x86-64")
    told = scene.fails("edgewise-agent", "enrol", fresh, "--state", folder / "second", "--simulated-board", "x86-64")
    assert "enrolment-used" in told
    # Being first makes it that one device, in that channel, until the operator hears of it.
    thief = fleet.client(fleet.tls(folder / "first"))
    assert thief.connected
    assert thief.publish(topics.device("porch", "status"), b"{}") == "Not authorized"
    fleet.edgewise("device", "revoke", "fresh")
    fleet.wait_for("the thief is cut off", lambda: thief.ended)
    thief.close()
    assert not fleet.client(fleet.tls(folder / "first")).connected
    scene.works()


def test_cloned_identity(scene: Any, twin: Any) -> None:
    """A copied card: two machines with one key. Both sides name it, and the fleet goes on."""
    fleet = scene.fleet
    shutil.copytree(twin.state, fleet.folder / "clone")
    fleet.start_device(twin, refresh_interval_s=1)
    for _ in range(2):
        assert twin.process.stop() == 0
        fleet.start_device(twin, refresh_interval_s=1)
    fleet.wait_for("the device is online", lambda: fleet.get("/devices/twin")["online"])
    assert not scene.alerts("cloned-identity"), "the control: an agent that starts again is no clone"
    clone = scene.run_copy("clone", twin)
    fleet.start_device(clone, refresh_interval_s=1)
    fleet.wait_for("the operator's alert", lambda: "twin" in scene.alerts("cloned-identity"), 60)
    fleet.wait_for("an agent that names it", lambda: "cloned-identity" in twin.process.text + clone.process.text, 60)
    assert twin.serves("meter") and clone.serves("meter"), "both serve their clients on"
    for device in (twin, clone):
        assert device.process.stop() == 0
    fleet.devices.remove(clone)
    scene.works()


def test_revoked_device(scene: Any, insider: Any) -> None:
    fleet = scene.fleet
    fleet.start_device(insider, refresh_interval_s=1)
    fleet.wait_for("the insider is online", lambda: fleet.get("/devices/insider")["online"])
    serving = insider.serves("meter")
    assert serving, "the control: until now it is a device like any other"
    cut = insider.process.text.count("the broker is not connected")
    fleet.edgewise("device", "revoke", "insider")
    fleet.wait_for("it is cut off", lambda: insider.process.text.count("the broker is not connected") > cut)
    assert not fleet.client(fleet.tls(insider.state)).connected
    assert "revoked" in _alert(fleet, insider)
    fleet.wait_for("the device knows why", lambda: "device-revoked" in scene.status_of(insider), 60)
    assert insider.serves("meter") == serving
    scene.works()


def _alert(fleet: Any, device: Any) -> str:
    """The reason for which the broker ends a device's TLS handshake."""
    with socket.create_connection(("127.0.0.1", fleet.broker.port), 10) as plain:
        try:
            with fleet.tls(device.state).wrap_socket(plain, server_hostname="127.0.0.1") as secured:
                # In TLS 1.3 the client is done before the broker has looked at its certificate.
                secured.recv(1)
        except ssl.SSLError as error:
            return str(error).lower()
    return ""
