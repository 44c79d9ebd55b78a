"""What happens to the device: an update, one that fails its self-test, an abort, one that is rolled back.

Each stage is one newer assignment. `may_serve` holds the versions that the device may serve at any
moment of it: the one before, and the new one where it passed its self-test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewise_agent.install.state import ModelState
from edgewise_protocol import topics
from enrolment import DEVICE, enrol
from rig import Device, MemoryBroker

OLD, NEW, BAD, FAULTY = 1, 2, 3, 4
MIB = 1 << 20
PADDING = {OLD: 0, NEW: 4 * MIB, BAD: MIB, FAULTY: MIB}
"""Bytes of weights that the computation does not need."""


@dataclass(frozen=True)
class Stage:
    name: str
    assigned: int
    """The version that the assignment names."""
    may_serve: frozenset[int]
    ends: tuple[str, int]
    """State of the deployment, and version in service."""
    error_code: str = ""


START = Stage("start", OLD, frozenset({OLD}), ("committed", OLD))
STAGES = (
    START,
    Stage("update", NEW, frozenset({OLD, NEW}), ("committed", NEW)),
    Stage("self-test fails", BAD, frozenset({NEW}), ("failed", NEW), "self-test-golden"),
    Stage("abort", OLD, frozenset({NEW, OLD}), ("committed", OLD)),
    Stage("rolled back", FAULTY, frozenset({OLD, FAULTY}), ("rolled_back", OLD), "engine-fault"),
)
WANTED = Stage("wanted", NEW, frozenset({OLD, NEW, FAULTY}), ("committed", NEW))
"""What the fleet wants in the end, whatever happened before."""


ROTATES = "abort"
"""The stage with a new root."""


def reached(stage: Stage, model: ModelState) -> bool:
    state, version = stage.ends
    at_end = (model.state, model.active.version if model.active else 0) == (state, version)
    return at_end and model.error_code == stage.error_code and _target(model) == stage.assigned


def _target(model: ModelState) -> int:
    return model.target.custom.version if model.target else 0


@dataclass
class World:
    """Everything that the fleet has signed."""

    simulator: Any
    broker: MemoryBroker = field(default_factory=MemoryBroker)

    def __post_init__(self) -> None:
        self.repository = self.simulator.Repository()
        self.files: dict[int, Any] = {}
        self.signed: dict[str, tuple[dict[str, bytes], bytes]] = {}
        metadata: dict[str, bytes] = {}
        # Signed now, so that every agent that is forked from here meets the same server.
        for number, stage in enumerate((*STAGES, WANTED), 1):
            if stage.assigned not in self.files:
                self._release(stage.assigned)
            if stage.name == ROTATES:
                self.repository.root.signed.version += 1
                self.repository.root.sign(self.repository.signers["root"])
            metadata |= {topics.metadata(name): data for name, data in self.repository.files().items()}
            assignment = self.repository.assignment(DEVICE, (self.files[stage.assigned],), number)
            self.signed[stage.name] = (dict(metadata), assignment)

    def _release(self, version: int) -> None:
        file, data = self.simulator.make_bundle(version, padding=PADDING[version], wrong_golden=version == BAD)
        self.files[version] = file
        self.broker.keep_bundle(file, data)
        self.repository.add(file)

    def enrol(self, state: Path) -> None:
        enrol(state, self.simulator, self.signed[START.name][0][topics.metadata("1.root.json")])

    def device(self, state: Path) -> Device:
        return Device(state, self.simulator, FAULTY)

    def assign(self, device: Device, stage: Stage) -> None:
        """The server publishes what was signed until then, and assigns."""
        metadata, assignment = self.signed[stage.name]
        self.broker.retained.update(metadata)
        device.installer.hint(assignment)

    def run(self, device: Device, stages: tuple[Stage, ...], *, disk: bool = True) -> Iterator[Stage]:
        """Let the stages happen; yields each that the disk kept from its end, and then takes it to have space again."""
        for stage in stages:
            self.assign(device, stage)
            while not device.settle(lambda model, stage=stage: reached(stage, model), disk=disk):
                yield stage
                disk = True
            device.acknowledge()
