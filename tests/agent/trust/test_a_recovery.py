"""Guards against a fleet that thieves of online keys shut out for good: by version numbers that nobody can follow.

Fast-forward attacks and the recovery from them (TUF 1.0.33, section 5.3.11), through a real agent:
once the offline keys have replaced the stolen ones, what those signed binds a device no more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgewise_agent.install.state import InstallState, load_state
from edgewise_protocol import topics
from edgewise_protocol.metadata import encode_metadata
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile


def replace_online_keys(repository: Any) -> None:
    """What the offline keys do: a next root with other snapshot and timestamp keys, and another director."""
    root, targets = repository.root.signed, repository.targets.signed
    for role, parent in (("snapshot", root), ("timestamp", root), ("director", targets)):
        parent.revoke_key(repository.signers[role].public_key.keyid, role)
        repository.signers[role] = CryptoSigner.generate_ed25519()
        parent.add_key(repository.signers[role].public_key, role)
    root.version += 1
    repository.root.sign(repository.signers["root"])
    for role in (repository.snapshot, repository.timestamp):
        role.signatures.clear()


def test_replaced_snapshot_and_timestamp_keys_forget_versions_out_of_reach(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, x: Any
) -> None:
    one, two = (simulator.make_bundle(version) for version in (1, 2))
    voice.release(*one)
    with run_agent() as device:
        voice.assign((one[0],), 1)
        voice.wait_model("committed", 1)
        stolen = voice.repository.copy()
        snapshot, timestamp = stolen.snapshot.signed, stolen.timestamp.signed
        snapshot.version = timestamp.version = 1_000_000_000
        snapshot.meta["targets.json"] = MetaFile(version=1_000_000_000)
        stolen.snapshot.sign(stolen.signers["snapshot"])
        voice.publish(topics.metadata("1000000000.snapshot.json"), encode_metadata(stolen.snapshot))
        voice.publish(topics.metadata("timestamp.json"), stolen.next_timestamp())
        voice.assign((two[0],), 2)
        voice.wait_refusal("metadata-unavailable")
        # The honest repository, under the stolen keys, looks like a rollback now.
        voice.release(*two)
        voice.assign((two[0],), 3)
        voice.wait_refusal("metadata-rollback")
        assert device.infer(x)[0] == 1
    replace_online_keys(voice.repository)
    voice.publish_metadata()
    voice.forget()
    # A restarted agent has what it persisted, no more.
    with run_agent() as device:
        voice.assign((two[0],), 4)
        voice.wait_model("committed", 2)
        assert device.infer(x)[0] == 2


def test_a_replaced_director_is_heard_whatever_the_stolen_one_has_numbered(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, tmp_path: Path, x: Any
) -> None:
    one, two = (simulator.make_bundle(version) for version in (1, 2))
    voice.release(*one)
    voice.release(*two)
    with run_agent() as device:
        voice.assign((one[0],), 1)
        voice.wait_model("committed", 1)
        voice.assign((one[0],), 2**31)
        voice.wait_refusal("assignment-version-jump")
        voice.assign((one[0],), 2**20)
        voice.wait("reported", lambda r: r.assignment_version == 2**20, "the fast-forward")
        voice.assign((two[0],), 3)
        voice.wait_refusal("assignment-stale")
        replace_online_keys(voice.repository)
        voice.publish_metadata()
        voice.forget()
        voice.assign((two[0],), 4)
        voice.wait_model("committed", 2)
        # From here on the memory holds again, under the new keys.
        voice.assign((one[0],), 3)
        voice.wait_refusal("assignment-stale")
        assert device.infer(x)[0] == 2
    assert load_state(tmp_path / "state/installed.json").accepted.version == 4


def test_a_target_that_failed_is_tried_again_under_new_keys_even_with_the_same_number(
    voice: Any, run_agent: Callable[..., Any], simulator: Any
) -> None:
    bad = simulator.make_bundle(1, wrong_golden=True)
    voice.release(*bad)
    with run_agent():
        voice.assign((bad[0],), 1)
        voice.wait_model("failed", 1)
        replace_online_keys(voice.repository)
        voice.publish_metadata()
        voice.forget()
        voice.assign((bad[0],), 1)
        voice.wait("event", lambda e: e.data.get("state") == "self_test", "a second self-test")


def test_a_state_file_of_an_older_agent_is_read_and_forgets_nothing(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, tmp_path: Path
) -> None:
    path = tmp_path / "installed.json"
    path.write_text('{"spec_version":"1.0","assignment_version":7,"deployment":"none","models":{}}')
    old = load_state(path)
    assert old == InstallState(assignment_version=7)
    assert old.accepted.under("any") == old.accepted


@pytest.mark.parametrize("only", ["timestamp", "snapshot"])
def test_replacing_one_key_undoes_what_that_key_signed(
    voice: Any, run_agent: Callable[..., Any], simulator: Any, only: str
) -> None:
    """The thief holds one key; for the other the honest server signs on."""
    file = simulator.make_bundle(1)
    voice.release(*file)
    with run_agent() as device:
        voice.wait("status", lambda s: s.online, "a birth")
        device.agent._gate.refresh()
        repository = voice.repository
        role = getattr(repository, only)
        role.signed.version = 1_000_000_000
        if only == "timestamp":
            voice.publish(topics.metadata("timestamp.json"), repository.next_timestamp())
        else:
            repository.snapshot.signed.meta["targets.json"].version = 1_000
            repository.snapshot.sign(repository.signers["snapshot"])
            voice.publish(topics.metadata("1000000000.snapshot.json"), encode_metadata(repository.snapshot))
            voice.publish(topics.metadata("timestamp.json"), repository.next_timestamp())
        voice.assign((file[0],), 1)
        # A false timestamp over a true snapshot changes nothing yet; a false snapshot names what is not there.
        if only == "snapshot":
            voice.wait_refusal("metadata-unavailable")
        else:
            voice.wait_model("committed", 1)
        root = repository.root.signed
        root.revoke_key(repository.signers[only].public_key.keyid, only)
        repository.signers[only] = CryptoSigner.generate_ed25519()
        root.add_key(repository.signers[only].public_key, only)
        root.version += 1
        repository.root.sign(repository.signers["root"])
        role.signatures.clear()
        role.signed.version = 10
        voice.publish_metadata()
        voice.forget()
        voice.assign((file[0],), 2)
        voice.wait("reported", lambda r: r.assignment_version == 2 and not r.error_code, "the recovery")
        device.agent._gate.refresh()
