"""Danger: a worker's key brings code onto devices, or a device whose agent is too old is given a model all the same."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from typing import Any

import msgspec
import pytest
from edgewise_protocol.bundle import file_entry, write_bundle
from edgewise_protocol.chunks import build_index
from edgewise_protocol.manifest import AGENT_MODEL, AgentSpec, Manifest, Requirements, WheelSpec
from edgewise_protocol.targets import SignedFile, bundle_path, custom_for
from edgewise_server.errors import DelegationError, DirectorError, SettingsError, TargetError
from edgewise_server.models.devices import Device
from edgewise_server.models.registry import Target
from edgewise_server.orchestrator.service import Orchestrator
from edgewise_server.rollout.eligibility import barred
from edgewise_server.services import assignments, blobs, rollout_facts, rollouts
from edgewise_server.settings import load_settings

ALL = [{"percent": 100}]


def agent_bundle(kit: Any, version: str = "0.2.0", number: int = 2000) -> Any:
    wheel = f"wheel of {version}".encode()
    files = {"edgewise-agent.whl": wheel}
    spec = WheelSpec(file="edgewise-agent.whl", distribution="edgewise-agent", version=version, tags=("py3-none-any",))
    manifest = Manifest(
        spec_version="1.0",
        kind="agent",
        model=AGENT_MODEL,
        version=number,
        profile="any",
        requires=Requirements(),
        files=tuple(file_entry(name, data) for name, data in files.items()),
        agent=AgentSpec(version=version, wheels=(spec,)),
    )
    out = io.BytesIO()
    write_bundle(out, manifest, files)
    data = out.getvalue()
    file = SignedFile(
        path=bundle_path("lab", AGENT_MODEL, "any", number),
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        custom=custom_for(manifest, hashlib.sha256(build_index(io.BytesIO(data))).hexdigest()),
    )
    return dataclasses.replace(kit.make_bundle(), data=data, file=file, provenance=b"")


def reports(fleet: Any, device_id: str, agent_version: str) -> None:
    """The device is born with this agent."""
    with fleet.context.database.session() as session:
        device = session.get(Device, device_id)
        device.facts = {**device.facts, "agent_version": agent_version}
        session.add(device)


def start_agent(fleet: Any, number: int) -> str:
    request = rollouts.RolloutRequest(model=AGENT_MODEL, version=number, group="all", phases=ALL)
    with fleet.context.database.session() as session:
        return rollouts.create(session, request, "test", fleet.now).id


@pytest.fixture
def strict(fleet: Any) -> Any:
    """The fleet whose agents must be of 0.2.0 or newer."""
    settings = fleet.context.settings.model_copy(update={"minimum_agent_version": "0.2.0"})
    fleet.context = dataclasses.replace(fleet.context, settings=settings)
    fleet.orchestrator = Orchestrator(fleet.context)
    return fleet


@pytest.mark.parametrize(
    ("model", "version", "minimum", "code"),
    [
        ("digits", "0.1.0", "0.2.0", "agent-too-old"),
        ("digits", "0.2.0", "0.2.0", ""),
        ("digits", "0.1.0", "", ""),
        ("digits", "", "0.2.0", "agent-too-old"),
        (AGENT_MODEL, "0.1.0", "0.2.0", ""),
    ],
)
def test_the_rule(model: str, version: str, minimum: str, code: str) -> None:
    assert barred(model, version, minimum) == code


def test_an_old_agent_gets_a_newer_agent_and_only_then_a_model(strict: Any, kit: Any) -> None:
    strict.publish(kit.make_bundle(), agent_bundle(kit))
    strict.add("d0", "d1")
    reports(strict, "d0", "0.2.0")
    reports(strict, "d1", "0.1.0")
    model = strict.start(1, ALL)
    strict.until(lambda: strict.rollout(model).status == "completed")
    assert strict.versions() == {"d0": 1, "d1": 0}
    with strict.context.database.session(read_only=True) as session:
        facts = rollout_facts.gather(session, rollouts.get(session, model), strict.now, "0.2.0")
        assert {fact.device_id: fact.barred for fact in facts} == {"d0": "", "d1": "agent-too-old"}
    agent = start_agent(strict, 2000)
    strict.until(lambda: strict.rollout(agent).status == "completed")
    assert strict.rollout(agent).devices == {"d0": "committed", "d1": "committed"}
    reports(strict, "d1", "0.2.0")
    strict.until(lambda: strict.versions()["d1"] == 1)
    assert {f.custom.model for f in strict.assignment("d1").bundles} == {"digits", AGENT_MODEL}


def test_what_an_old_agent_runs_already_goes_on(strict: Any, kit: Any) -> None:
    strict.publish(kit.make_bundle())
    strict.add("d0")
    reports(strict, "d0", "0.2.0")
    strict.complete(1)
    reports(strict, "d0", "0.1.0")
    strict.tick(8 * 24 * 3600 * 0.7)
    with strict.context.database.session() as session:
        assert assignments.renew(session, strict.context, strict.now).signed == 1
    assert strict.versions() == {"d0": 1}


def test_a_failed_agent_is_taken_back(fleet: Any, kit: Any) -> None:
    bad = agent_bundle(kit)
    fleet.publish(bad)
    fleet.add("d0")
    fleet.bad.add(bad.file.sha256)
    rollout = start_agent(fleet, 2000)
    fleet.until(lambda: fleet.rollout(rollout).reverted == 1)
    assert fleet.assignment("d0").bundles == ()


def test_a_workers_key_signs_no_agent(trusted_context: Any, ceremony: Any, kit: Any) -> None:
    made = agent_bundle(kit)
    disguised = kit.changed(made.file, kind="inference")
    with trusted_context.database.session() as session:
        blobs.add(session, trusted_context.blobs, made.data)
    for file in (made.file, disguised):
        data = ceremony.next_delegated("auto/lab", file)
        with pytest.raises(DelegationError, match="only the offline targets keys"):
            trusted_context.repository.upload("auto/lab", data, now=kit.NOW, actor="test")
        ceremony.delegated["auto/lab"].signed.targets.clear()
        ceremony.delegated["auto/lab"].signed.version -= 1


@pytest.mark.parametrize("values", [{"kind": "inference"}, {"model": "digits"}])
def test_an_agent_is_named_as_one_or_not_at_all(trusted_context: Any, ceremony: Any, kit: Any, values: Any) -> None:
    file = kit.changed(agent_bundle(kit).file, **values)
    file = msgspec.structs.replace(file, path=bundle_path("lab", file.custom.model, "any", 2000))
    with pytest.raises(TargetError, match="bear the name"):
        trusted_context.repository.upload("targets", ceremony.next_targets(file), now=kit.NOW, actor="test")


def test_the_director_names_no_agent_that_a_worker_signed(fleet: Any, kit: Any) -> None:
    """Should one ever stand in the registry, it is still not assigned."""
    made = agent_bundle(kit)
    fleet.publish(made)
    fleet.add("d0")
    fleet.ceremony.targets.signed.targets.clear()
    fleet.context.repository.upload("targets", fleet.ceremony.next_targets(), now=kit.NOW, actor="test")
    with fleet.context.database.session() as session:
        row = session.get(Target, made.file.path)
        row.trusted, row.role = True, "auto/lab"
        session.add(row)
        session.flush()
        with pytest.raises(DirectorError, match="only the offline targets keys"):
            fleet.context.director.issue_assignment(session, "d0", (made.file,), "none", 60)


@pytest.mark.parametrize("text", ["newest", "1.x", "0.2.0 "])
def test_a_minimum_that_is_no_version_is_refused(tmp_path: Any, text: str) -> None:
    (tmp_path / "server.toml").write_text(f'minimum_agent_version = "{text}"\n')
    if text.strip() != text:
        assert load_settings(tmp_path).minimum_agent_version == text
        return
    with pytest.raises(SettingsError, match="PEP 440"):
        load_settings(tmp_path)
