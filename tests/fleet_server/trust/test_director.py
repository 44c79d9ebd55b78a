"""Danger: the director signs what a device must not run, or a version that went backwards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from edgewise_protocol.assignment import Accepted, verify_assignment
from edgewise_protocol.errors import UnsignedAssignmentError, WrongDeviceError
from edgewise_server.errors import DirectorError, NotFoundError
from edgewise_server.models.devices import Device
from edgewise_server.services import devices, registry


def add_device(context, device_id="cam-1", channel="lab"):
    with context.database.session() as session:
        session.add(
            Device(id=device_id, channel=channel, certificate_serial="1f", certificate_not_after=datetime.now(UTC))
        )


def issue(context, *files, device_id="cam-1", deployment="rollout-1", confirm_within_s=600):
    with context.database.session() as session:
        return context.director.issue_assignment(session, device_id, files, deployment, confirm_within_s)


def verified(context, data, *, device_id="cam-1", channel="lab", accepted=0):
    with context.database.session(read_only=True) as session:
        trusted = context.repository.current(session).targets.signed
    return verify_assignment(
        data, trusted, device_id=device_id, channel=channel, now=datetime.now(UTC), accepted=Accepted(accepted)
    )


def test_a_device_verifies_what_the_director_signed(trusted_context, ceremony, kit):
    bundle = kit.make_bundle()
    kit.publish(trusted_context, ceremony, bundle)
    add_device(trusted_context)
    found = verified(trusted_context, issue(trusted_context, bundle.file))
    assert found.bundles == (bundle.file,)
    assert (found.version, found.body.deployment, found.body.confirm_within_s) == (1, "rollout-1", 600)
    with trusted_context.database.session(read_only=True) as session:
        device = devices.get(session, "cam-1")
        assert device.assignment_version == 1
        assert device.assignment["bundles"][0]["path"] == bundle.file.path


def test_versions_only_grow_even_when_an_abort_names_an_older_bundle(trusted_context, ceremony, kit):
    old, new = kit.make_bundle(version=1), kit.make_bundle(version=2)
    kit.publish(trusted_context, ceremony, old, new)
    add_device(trusted_context)
    versions = [verified(trusted_context, issue(trusted_context, f)).version for f in (old.file, new.file, old.file)]
    assert versions == [1, 2, 3]


def test_a_reused_device_id_does_not_start_again_at_one(trusted_context):
    add_device(trusted_context)
    issue(trusted_context)
    with trusted_context.database.session() as session:
        devices.delete(session, "cam-1")
    add_device(trusted_context)
    assert verified(trusted_context, issue(trusted_context)).version == 2


def test_two_orchestrators_never_give_one_version_twice(trusted_context):
    add_device(trusted_context)
    with ThreadPoolExecutor(8) as pool:
        payloads = list(pool.map(lambda _: issue(trusted_context), range(24)))
    assert sorted(verified(trusted_context, p).version for p in payloads) == list(range(1, 25))


def test_a_rolled_back_transaction_leaves_no_assignment(trusted_context):
    add_device(trusted_context)
    with pytest.raises(RuntimeError), trusted_context.database.session() as session:
        trusted_context.director.issue_assignment(session, "cam-1", (), "none", 60)
        raise RuntimeError
    assert verified(trusted_context, issue(trusted_context)).version == 1


def test_bundles_that_are_not_the_devices_to_run_are_refused(trusted_context, ceremony, kit):
    lab, other = kit.make_bundle(), kit.make_bundle(channel="production")
    second = kit.make_bundle(profile="x86-64")
    training = kit.make_training_bundle()
    kit.publish(trusted_context, ceremony, lab, other, second)
    kit.publish(trusted_context, ceremony, training, role="rounds")
    add_device(trusted_context)
    refused = {
        "another channel": (other.file,),
        "never signed": (kit.make_bundle(version=9).file,),
        "another digest": (kit.changed(lab.file, sha256="0" * 64),),
        "another chunk index": (kit.changed(lab.file, chunk_index="0" * 64),),
        "two of one model": (lab.file, second.file),
        "a training bundle": (training.file,),
    }
    for name, files in refused.items():
        with pytest.raises(DirectorError):
            issue(trusted_context, *files)
            pytest.fail(name)
    assert verified(trusted_context, issue(trusted_context)).version == 1


def test_a_withdrawn_bundle_and_one_below_the_floor_are_refused(trusted_context, ceremony, kit):
    one, two = kit.make_bundle(version=1), kit.make_bundle(version=2)
    kit.publish(trusted_context, ceremony, one, two)
    add_device(trusted_context)
    issue(trusted_context, one.file)
    upload = ceremony.next_targets(floors={"digits": 2})
    trusted_context.repository.upload("targets", upload, now=kit.NOW, actor="test")
    with pytest.raises(DirectorError, match="floor"):
        issue(trusted_context, one.file)
    issue(trusted_context, two.file)
    ceremony.targets.signed.targets.clear()
    trusted_context.repository.upload("targets", ceremony.next_targets(), now=kit.NOW, actor="test")
    with pytest.raises(DirectorError):
        issue(trusted_context, two.file)


def test_revoked_and_unknown_devices_are_assigned_nothing(trusted_context):
    add_device(trusted_context)
    with pytest.raises(NotFoundError):
        issue(trusted_context, device_id="nobody")
    with trusted_context.database.session() as session:
        devices.revoke(session, "cam-1")
    with pytest.raises(DirectorError, match="revoked"):
        issue(trusted_context)


@pytest.mark.parametrize(("deployment", "within"), [("a/b", 60), ("none", 0), ("none", 10**9), ("", 60)])
def test_malformed_orders_are_refused(trusted_context, deployment, within):
    add_device(trusted_context)
    with pytest.raises(DirectorError):
        issue(trusted_context, deployment=deployment, confirm_within_s=within)


def test_tampered_and_foreign_assignments_fail_on_the_device(trusted_context):
    add_device(trusted_context)
    data = issue(trusted_context)
    with pytest.raises(UnsignedAssignmentError):
        verified(trusted_context, data.replace(b'"confirm_within_s":600', b'"confirm_within_s":601'))
    with pytest.raises(WrongDeviceError):
        verified(trusted_context, data, device_id="cam-2")


def test_the_best_fitting_bundle_of_the_devices_channel_is_chosen(trusted_context, ceremony, kit):
    from edgewise_protocol.facts import DeviceFacts

    family = kit.make_bundle(profile="arm-family", compatible=("raspberrypi", "raspberry-pi-4-64"))
    exact = kit.make_bundle(profile="raspberry-pi-4-64")
    anywhere = kit.make_bundle(profile="any-board", compatible=())
    elsewhere = kit.make_bundle(channel="production")
    lite = kit.make_bundle(profile="lite", engine="litert", compatible=("raspberrypi",))
    kit.publish(trusted_context, ceremony, family, exact, anywhere, elsewhere, lite)

    def best(*compatible, engines=None, channel="lab"):
        facts = DeviceFacts(machine="aarch64", compatible=compatible, engines=engines or {"onnxruntime": "1.32.0"})
        with trusted_context.database.session(read_only=True) as session:
            found = registry.bundle_for(session, "digits", 1, facts, channel=channel)
        return found.custom.profile if found else None

    assert best("raspberrypi,4-model-b", "raspberrypi", "raspberry-pi-4-64") == "raspberry-pi-4-64"
    assert best("raspberrypi") == "arm-family"
    assert best("orange") == "any-board"
    assert best("raspberrypi", engines={"litert": "2.3.0"}) == "lite"
    assert best("raspberrypi", engines={"none": "1"}) is None
    assert best("raspberry-pi-4-64", channel="production") == "raspberry-pi-4-64"
    assert best("raspberry-pi-4-64", channel="elsewhere") is None
