"""The danger: an agent that a newer one gave way to cannot read what the newer one wrote (docs/adr/0007)."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from edgewise_agent.identity.identity import Card
from edgewise_agent.install.state import InstallState, ModelState, Slot, load_state
from edgewise_agent.maintenance import Runtime
from edgewise_agent.selfupdate.slots import Mark
from edgewise_agent.store.store import Record
from edgewise_agent.twin import TwinFile
from edgewise_protocol.targets import SignedFile, TargetCustom

STATE = (InstallState, ModelState, Slot, Card, Runtime, Mark, Record, SignedFile, TargetCustom)


@pytest.mark.parametrize("kind", STATE)
def test_what_a_newer_agent_adds_to_a_state_file_is_ignored(kind: type[msgspec.Struct]) -> None:
    assert not kind.__struct_config__.forbid_unknown_fields
    assert not kind.__struct_config__.array_like, "fields by place cannot be added"


def test_the_agent_before_reads_the_newer_ones_installed_state(tmp_path: Path) -> None:
    model = ModelState(model="pump", active=Slot(sha256="1" * 64, version=3), state="committed")
    written = msgspec.to_builtins(InstallState(assignment_version=7, models={"pump": model}))
    written["added_later"] = {"deep": [1]}
    written["models"]["pump"]["added_later"] = 1
    written["models"]["pump"]["active"]["added_later"] = "x"
    TwinFile(tmp_path / "installed.json", 1 << 20).write(msgspec.json.encode(written))
    found = load_state(tmp_path / "installed.json")
    assert (found.assignment_version, found.models["pump"]) == (7, model)
