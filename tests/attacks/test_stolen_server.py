"""The danger: whoever takes the server takes the fleet.

The attacker has everything of the server: its database, its online keys (snapshot, timestamp, director, the fleet's
intermediate), its place at the broker, and the network. What offline keys have not signed stays out of its reach;
and once they have replaced the stolen keys, devices are healthy again with nobody touching them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from edgewise_protocol import topics
from edgewise_protocol.errors import SignatureError
from edgewise_protocol.metadata import check_signed, encode_metadata
from edgewise_protocol.rounds import OfferBody, build_offer
from edgewise_protocol.targets import DIRECTOR, SignedFile, TargetCustom, to_target_file
from msgspec.structs import replace
from tuf.api.metadata import Metadata, Root, Targets

pytestmark = pytest.mark.slow

Documents = dict[str, bytes]
ASSIGNMENT = "ew/1/dev/porch/assignment"


def own_bundle(scene: Any) -> SignedFile:
    """A bundle of the thief's, its bytes at the broker, described as a newer version of the model."""
    true = scene.bundle(scene.next)
    folder = scene.fleet.folder / "thief"
    made = scene.bundles.inference_bundle(folder, "meter", 9_000, "raspberry-pi-5")
    digest, length, index = scene.thief.retain(made.read_bytes())
    custom = replace(true.custom, version=9_000, chunk_index=index)
    return replace(true, path=scene.path(9_000), sha256=digest, length=length, custom=custom)


def assign(scene: Any, *files: SignedFile, **how: Any) -> Documents:
    return {ASSIGNMENT: scene.thief.assignment("porch", *files, **{"version": scene.accepted, **how})}


# -- what the director's key does not reach ----------------------------------------------------------


def a_bundle_that_nobody_signed(scene: Any) -> Documents:
    return assign(scene, own_bundle(scene))


def other_bytes_under_a_signed_name(scene: Any) -> Documents:
    true = scene.bundle(scene.next)
    scene.offer_bytes(scene.next)
    return {topics.blob(true.sha256, 0): b"whatever the thief likes", **assign(scene, true)}


def below_the_floor(scene: Any) -> Documents:
    scene.offer_bytes(1)
    return assign(scene, scene.bundle(1))


def below_the_floor_by_another_number(scene: Any) -> Documents:
    """The same bundle, called a newer version."""
    old = scene.bundle(1)
    return assign(scene, replace(old, path=scene.path(40), custom=replace(old.custom, version=40)))


def another_channels_bundle(scene: Any) -> Documents:
    true = scene.bundle(scene.next)
    return assign(scene, replace(true, path=scene.path(scene.next, channel="production")), channel="production")


def a_training_bundle_to_serve(scene: Any) -> Documents:
    true = scene.bundle(scene.next)
    return assign(scene, replace(true, path="rounds/lab/meter/1.ewb", custom=replace(true.custom, kind="training")))


def a_version_out_of_reach(scene: Any) -> Documents:
    return assign(scene, scene.bundle(scene.version), version=scene.accepted + 2**20 + 1)


def an_assignment_by_another_online_key(scene: Any) -> Documents:
    return assign(scene, scene.bundle(scene.next), signer="timestamp")


def an_offer_to_train(scene: Any) -> Documents:
    def file(path: str, kind: str) -> SignedFile:
        custom = TargetCustom(chunk_index="0" * 64, kind=kind, model="meter")
        return SignedFile(path=path, length=1, sha256="0" * 64, custom=custom)

    body = OfferBody(round_id="forged", federation="forged", number=1, channel="lab", model="meter")
    offer = build_offer(
        body,
        file("rounds/lab/meter/1.ewb", "training"),
        file("rounds/lab/meter/forged.safetensors", "weights"),
        expires=scene.attacker.later(),
    )
    offer.sign(scene.thief.key("director"))
    return {topics.round_offer("forged"): encode_metadata(offer)}


# -- what snapshot and timestamp do not reach --------------------------------------------------------


def targets_with_another_bundle_and_no_floor(scene: Any) -> Documents:
    targets = scene.thief.role("targets")
    mine = own_bundle(scene)
    targets.signed.version += 1
    targets.signed.targets[mine.path] = to_target_file(mine)
    targets.signed.unrecognized_fields["edgewise"].pop("floors")
    targets.signatures.clear()
    for role in ("director", "snapshot", "timestamp"):
        targets.sign(scene.thief.key(role), append=True)
    return scene.lies({"targets": targets}) | assign(scene, mine)


def a_worker_role_that_the_director_signed(scene: Any) -> Documents:
    mine = own_bundle(scene)
    role: Metadata[Targets] = scene.thief.role("auto/lab")
    role.signed.version += 1
    role.signed.targets[mine.path] = to_target_file(mine)
    role.sign(scene.thief.key("director"))
    return scene.lies({"auto/lab": role}) | assign(scene, mine)


def an_assignment_for_metadata_of_the_director(scene: Any) -> Documents:
    """An assignment is Targets metadata that the delegated role `director` signed: put into the snapshot as such."""
    mine = own_bundle(scene)
    role = Metadata.from_bytes(scene.thief.assignment("porch", mine, version=1))
    return scene.lies({"director": role}) | assign(scene, mine)


def a_root_of_the_thiefs(scene: Any) -> Documents:
    root: Metadata[Root] = scene.thief.role("root")
    root.signed.version += 1
    root.signed.roles["targets"].threshold = 1
    root.signed.add_key(scene.thief.key("director").public_key, "targets")
    root.signatures.clear()
    for role in ("director", "snapshot", "timestamp"):
        root.sign(scene.thief.key(role), append=True)
    return {topics.metadata(f"{root.signed.version}.root.json"): encode_metadata(root)}


def older_targets(scene: Any) -> Documents:
    """True targets metadata from before the floor, under a new snapshot."""
    return scene.lies({}, claim={"targets": 1})


def a_snapshot_without_the_worker(scene: Any) -> Documents:
    return scene.lies({}, claim={"auto/lab": 0})


BY_THE_DIRECTOR = {
    a_bundle_that_nobody_signed: "assignment-unknown-target",
    other_bytes_under_a_signed_name: "chunk-tampered",
    below_the_floor: "assignment-below-floor",
    below_the_floor_by_another_number: "assignment-unknown-target",
    another_channels_bundle: "assignment-wrong-channel",
    a_training_bundle_to_serve: "assignment",
    a_version_out_of_reach: "assignment-version-jump",
    an_assignment_by_another_online_key: "assignment-unsigned",
    an_offer_to_train: "round-offer-unsigned",
    a_root_of_the_thiefs: "metadata-unsigned",
}
BY_SNAPSHOT_AND_TIMESTAMP = {
    older_targets: "metadata-rollback targets",
    a_snapshot_without_the_worker: "metadata-invalid",
    an_assignment_for_metadata_of_the_director: "assignment-unknown-target",
    a_worker_role_that_the_director_signed: "metadata-unsigned",
    targets_with_another_bundle_and_no_floor: "metadata-unsigned",
}


def name(attempt: Any) -> str:
    return str(getattr(attempt, "__name__", attempt))


@pytest.mark.parametrize(("forge", "code"), BY_THE_DIRECTOR.items(), ids=name)
def test_stolen_director_key(scene: Any, forge: Callable[[Any], Documents], code: str) -> None:
    with scene.lying(forge(scene)):
        if forge is an_offer_to_train:
            scene.told(code, kind="round")
        elif forge is other_bytes_under_a_signed_name:
            scene.told(code)
        else:
            scene.refuses(code)
    scene.works()


def test_stolen_server_with_all_its_online_keys_says_what_is_true(scene: Any) -> None:
    """The control of what follows: metadata that the thief signs anew, and an assignment to a signed bundle, count."""
    scene.offer_bytes(scene.next)
    documents = scene.lies({}) | assign(scene, scene.bundle(scene.next))
    with scene.lying(documents):
        scene.fleet.wait_for("the chosen version", lambda: scene.victim.serves("meter") == scene.next)
    scene.version = scene.next


@pytest.mark.parametrize(("forge", "code"), BY_SNAPSHOT_AND_TIMESTAMP.items(), ids=name)
def test_stolen_server_with_all_its_online_keys(scene: Any, forge: Callable[[Any], Documents], code: str) -> None:
    code, _, word = code.partition(" ")
    with scene.lying(forge(scene)):
        scene.refuses(code, word=word)


def test_fast_forward_recovery(scene: Any) -> None:
    """The thief's last word: numbers that no honest server can reach. New keys, put into force offline, undo it."""
    fleet = scene.fleet
    # The snapshot of the last attempt named targets metadata of the next version: here they are, the honest ones.
    fleet.edgewise("keys", "set-floor", fleet.keys, "another", 1, "--yes")
    before = fleet.client(scene.thief.as_client("edgewise-server"))
    assert before.connected, "the control: until now the thief is let in as the server"
    before.close()
    far = scene.lies({}, jump=1_000_000_000)
    with scene.lying(far | assign(scene, scene.bundle(scene.version), version=scene.accepted + 2**20)):
        fleet.wait_for("the device goes along", lambda: scene.accepted >= 2**20)
    # The honest server is alone again, and is not heard: an older assignment under older metadata.
    scene.begin()
    rollout = scene.start(scene.next)
    scene.refuses("metadata-rollback")
    fleet.edgewise("rollout", "abort", rollout)

    fleet.command("edgewise-server", "rotate-keys", "--state", fleet.state)
    fleet.edgewise("keys", "rotate-online", fleet.keys, "--online", fleet.state / "online.json")
    fleet.edgewise("trust", "install", fleet.keys)
    scene.works()
    assert scene.accepted < 2**20

    # What was stolen opens nothing any more: not even the broker, where it spoke as the server before.
    thief = fleet.client(scene.thief.as_client("edgewise-server"))
    assert not thief.connected, thief.outcome
    thief.close()
    forged = scene.thief.assignment("porch", scene.bundle(scene.next), version=scene.accepted)
    with pytest.raises(SignatureError):
        check_signed(scene.thief.role("targets").signed, DIRECTOR, Metadata.from_bytes(forged))
