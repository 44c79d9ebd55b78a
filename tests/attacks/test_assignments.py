"""The danger: a device runs what it was not meant to run, because somebody said so in the director's name.

The attacker of these tests holds the director's key and may write to every topic.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

pytestmark = pytest.mark.slow

PC, PC_VERSION = "x86-64", 60


def test_a_stolen_director_may_choose_among_what_is_signed_and_nothing_else(scene: Any) -> None:
    """The control of this module: the very same forgery is taken up, where every word in it is permitted."""
    scene.offer_bytes(scene.next)
    scene.assign(scene.thief.assignment("porch", scene.bundle(scene.next), version=scene.accepted))
    scene.fleet.wait_for("the chosen version", lambda: scene.victim.serves("meter") == scene.next)
    scene.version = scene.next
    scene.works()


def test_rollback_below_the_floor(scene: Any) -> None:
    assert scene.bundle(1).custom.version == 1, "version 1 is signed still; only the floor forbids it"
    scene.offer_bytes(1)
    scene.assign(scene.thief.assignment("porch", scene.bundle(1), version=scene.accepted))
    scene.refuses("assignment-below-floor")
    scene.works()


def test_wrong_device(scene: Any) -> None:
    """Office's own assignment, as its director signed it, on the topic of porch."""
    scene.assign(scene.thief.hear("ew/1/dev/office/assignment"))
    scene.refuses("assignment-wrong-device")
    scene.works()


def test_wrong_profile(scene: Any) -> None:
    """Signed for the same channel, but for another board."""
    scene.offer_bytes(PC_VERSION, PC)
    scene.assign(scene.thief.assignment("porch", scene.bundle(PC_VERSION, PC), version=scene.accepted))
    assert scene.told("does-not-fit")["data"]["path"] == scene.path(PC_VERSION, PC)
    scene.works()


def test_replayed_assignment(scene: Any) -> None:
    old = scene.thief.hear("ew/1/dev/porch/assignment")
    scene.works()
    scene.assign(old)
    scene.refuses("assignment-stale")
    scene.works()


def test_wrong_channel(scene: Any) -> None:
    """Signed offline, but for the production channel; the device's certificate and path say `lab`."""
    fleet, folder = scene.fleet, scene.fleet.folder
    fleet.edgewise("keys", "add-channel", fleet.keys, "production")
    bundle, out = folder / "bundles" / f"meter-{scene.next}-raspberry-pi-5.ewb", folder / "releases" / "production"
    fleet.edgewise("sign", bundle, "--channel", "production", "--keys", fleet.keys, "--out", out)
    fleet.edgewise("publish", out, "--keys", fleet.keys)
    signed = scene.bundle(scene.next, channel="production")
    scene.offer_bytes(scene.next)
    scene.assign(scene.thief.assignment("porch", signed, version=scene.accepted))
    scene.refuses("assignment-wrong-channel")
    scene.works()


def test_mix_and_match_of_bundles(scene: Any) -> None:
    """The path of one signed bundle with the digest of another."""
    one, other = scene.bundle(scene.next), scene.bundle(scene.next + 1)
    scene.offer_bytes(scene.next + 1)
    mixed = replace(one, sha256=other.sha256, length=other.length, custom=replace(one.custom, version=scene.next))
    scene.assign(scene.thief.assignment("porch", mixed, version=scene.accepted))
    scene.refuses("assignment-unknown-target")
    scene.works()
