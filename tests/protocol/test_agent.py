"""Danger: an agent bundle that nobody offline signed, that cannot run here, or that looks like a model."""

from __future__ import annotations

import msgspec
import pytest
from edgewise_protocol.agent import bundle_number, is_older, misfits, parse_version
from edgewise_protocol.assignment import check_offline
from edgewise_protocol.errors import MalformedError, OnlineSignedAgentError
from edgewise_protocol.facts import DeviceFacts, fits
from edgewise_protocol.manifest import (
    AGENT_MODEL,
    AgentSpec,
    FileEntry,
    Manifest,
    Requirements,
    WheelSpec,
    decode_manifest,
    encode_manifest,
)
from edgewise_protocol.targets import SignedFile, TargetCustom, to_target_file
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import Targets

WHEEL = WheelSpec(
    file="edgewise-agent.whl", distribution="edgewise-agent", version="0.2.0", tags=("py3-none-any", "cp311-x")
)
SPEC = AgentSpec(version="0.2.0", wheels=(WHEEL,), requires_python=">=3.11")


def a_manifest(**changes: object) -> Manifest:
    values: dict[str, object] = {
        "spec_version": "1.0",
        "kind": "agent",
        "model": AGENT_MODEL,
        "version": 2000,
        "profile": "any",
        "requires": Requirements(),
        "files": (FileEntry(name="edgewise-agent.whl", sha256="a" * 64, size=1),),
        "agent": SPEC,
    }
    return Manifest(**{**values, **changes})  # type: ignore[arg-type]


def a_file(**changes: object) -> SignedFile:
    custom = TargetCustom(chunk_index="b" * 64, kind="agent", model=AGENT_MODEL, version=2000, profile="any")
    file = SignedFile(path=f"lab/{AGENT_MODEL}/any/2000.ewb", length=10, sha256="a" * 64, custom=custom)
    return msgspec.structs.replace(file, **changes)


def test_an_agents_manifest_survives_the_wire() -> None:
    assert decode_manifest(encode_manifest(a_manifest())) == a_manifest()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"agent": None}, "needs an agent section"),
        ({"model": "digits"}, "bear the name"),
        ({"kind": "training"}, "training section"),
        ({"files": (FileEntry(name="other.whl", sha256="a" * 64, size=1),)}, "not among its files"),
    ],
)
def test_a_manifest_cannot_be_half_an_agents(changes: dict[str, object], why: str) -> None:
    with pytest.raises(MalformedError, match=why):
        decode_manifest(encode_manifest(a_manifest(**changes)))


def test_no_model_may_bear_the_agents_name_and_none_goes_without_an_engine() -> None:
    data = encode_manifest(a_manifest()).replace(b'"agent"', b'"inference"', 1)
    with pytest.raises(MalformedError):
        decode_manifest(data)


@given(st.text(max_size=80))
def test_any_text_may_be_a_version_a_device_reports(text: str) -> None:
    assert not is_older(text, "")
    assert is_older(text, "1.0") == (parse_version(text) is None or parse_version(text) < parse_version("1.0"))


@pytest.mark.parametrize(
    ("has", "minimum", "older"),
    [
        ("0.10.0", "0.9.0", False),
        ("0.9.0", "0.10.0", True),
        ("1.0.0rc1", "1.0.0", True),
        ("1.0.0+local", "1.0.0", False),
        ("", "0.1", True),
        ("unknown", "0.1", True),
        ("0.1", "not a version", True),
    ],
)
def test_versions_are_compared_as_pep_440_says(has: str, minimum: str, older: bool) -> None:
    assert is_older(has, minimum) is older


@given(st.lists(st.tuples(*[st.integers(0, 999)] * 3).filter(any), min_size=2, max_size=2))
def test_numbers_are_ordered_as_versions_are(pair: list[tuple[int, int, int]]) -> None:
    one, two = (".".join(map(str, parts)) for parts in pair)
    assert (bundle_number(one) < bundle_number(two)) == is_older(one, two)
    assert 1 <= bundle_number(one) < 2**31


@pytest.mark.parametrize("version", ["1.0rc1", "1.0.dev1", "1.0.post1", "1!1.0", "1.0+x", "1.2.3.4", "1000", "0", "x"])
def test_other_versions_need_a_number(version: str) -> None:
    with pytest.raises(MalformedError, match="number"):
        bundle_number(version)


def test_an_agent_must_fit_interpreter_platform_and_launcher() -> None:
    assert misfits(SPEC, tags={"py3-none-any"}, python="3.11.2", launcher=1) == ()
    assert "launcher" in misfits(SPEC, tags={"py3-none-any"}, python="3.11.2", launcher=0)[0]
    assert "Python" in misfits(SPEC, tags={"py3-none-any"}, python="3.10.1", launcher=1)[0]
    assert "built for" in misfits(SPEC, tags={"cp312-y"}, python="3.11.2", launcher=1)[0]
    odd = msgspec.structs.replace(SPEC, requires_python="the newest")
    assert "specifier" in misfits(odd, tags={"py3-none-any"}, python="3.11.2", launcher=1)[0]


def test_an_agent_needs_no_engine_but_its_board() -> None:
    facts = DeviceFacts(machine="x86_64", compatible=("x86-64",))
    assert fits(facts, a_manifest()) == ()
    assert fits(facts, a_manifest(requires=Requirements(compatible=("raspberry-pi-5",))))
    assert fits(facts, a_manifest(requires=Requirements(machine="aarch64")))


def test_only_the_offline_keys_sign_agents() -> None:
    file = a_file()
    check_offline(file, Targets(targets={file.path: to_target_file(file)}))
    disguised = a_file(custom=msgspec.structs.replace(file.custom, kind="inference"))
    for signed in ({}, {file.path: to_target_file(a_file(sha256="c" * 64))}):
        for named in (file, disguised):
            with pytest.raises(OnlineSignedAgentError):
                check_offline(named, Targets(targets=signed))
    model = a_file(custom=TargetCustom(chunk_index="b" * 64, model="digits"))
    check_offline(model, Targets())
