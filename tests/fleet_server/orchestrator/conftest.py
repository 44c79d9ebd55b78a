"""A fleet of rows and a clock: devices answer their assignments as an agent would, without a broker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from edgewise_protocol.assignment import Accepted, Assignment, verify_assignment
from edgewise_protocol.facts import DeviceFacts
from edgewise_protocol.messages import ModelReport, ModelTelemetry, Reported, Status, Telemetry
from edgewise_server.context import Context
from edgewise_server.models.base import utc_now
from edgewise_server.models.devices import Device
from edgewise_server.models.outgoing import Outgoing
from edgewise_server.orchestrator.service import Orchestrator
from edgewise_server.services import ingest, presence, rollouts
from edgewise_server.services.ingest import StreamedItem
from sqlmodel import select


@dataclass
class Fleet:
    """Devices whose agents accept assignments, and commit every version but those in `bad`."""

    context: Context
    ceremony: Any
    kit: Any
    orchestrator: Orchestrator
    now: float = field(default_factory=lambda: datetime.now(UTC).timestamp())
    bad: set[str] = field(default_factory=set)
    accepted: dict[str, int] = field(default_factory=dict)
    active: dict[str, dict[str, tuple[int, str]]] = field(default_factory=dict)
    seq: int = 0

    def add(self, *ids: str, channel: str = "lab", profile: str = "raspberry-pi-4-64", online: bool = True) -> None:
        facts = DeviceFacts(machine="aarch64", compatible=(profile,), engines={"onnxruntime": "1.32.0"}, simulated=True)
        with self.context.database.session() as session:
            for device_id in ids:
                device = Device(
                    id=device_id,
                    channel=channel,
                    certificate_serial=f"serial-{device_id}",
                    certificate_not_after=utc_now() + timedelta(days=300),
                )
                status = Status(online=True, session="s", at=self.now, facts=facts)
                presence.record_status(device, status, self.now)
                device.online = online
                if not online:
                    device.last_seen_at = None
                session.add(device)
                self.accepted[device_id] = 0
                self.active[device_id] = {}

    def publish(self, *bundles: Any, role: str = "targets") -> None:
        self.kit.publish(self.context, self.ceremony, *bundles, role=role)

    def online(self, device_id: str, value: bool) -> None:
        with self.context.database.session() as session:
            device = session.get(Device, device_id)
            assert device is not None
            device.online = value
            if not value:
                device.last_seen_at = None
            session.add(device)

    def assignment(self, device_id: str) -> Assignment | None:
        """What the device would accept from the broker, verified as it verifies."""
        with self.context.database.session(read_only=True) as session:
            row = session.exec(select(Outgoing).where(Outgoing.topic == f"ew/1/dev/{device_id}/assignment")).first()
            if row is None or row.payload is None:
                return None
            device = session.get(Device, device_id)
            assert device is not None
            return verify_assignment(
                row.payload,
                self.context.repository.current(session).targets.signed,
                device_id=device_id,
                channel=device.channel,
                now=datetime.fromtimestamp(self.now, UTC),
                accepted=Accepted(self.accepted[device_id]),
            )

    def answer(self, *ids: str) -> None:
        """The devices act on their assignments, and report."""
        for device_id in ids or tuple(self.accepted):
            found = self.assignment(device_id)
            if found is None or found.version == self.accepted[device_id]:
                continue
            self.accepted[device_id] = found.version
            reports = []
            running = self.active[device_id]
            for model in running.keys() - {file.custom.model for file in found.bundles}:
                del running[model]
            for file in found.bundles:
                model, target = file.custom.model, (file.custom.version, file.sha256)
                failed = file.sha256 in self.bad
                if not failed:
                    running[model] = target
                version, digest = running.get(model, (0, ""))
                reports.append(
                    ModelReport(
                        model=model,
                        state="failed" if failed else "committed",
                        since=self.now,
                        active_version=version,
                        active_sha256=digest,
                        target_version=target[0],
                        target_sha256=target[1],
                        error_code="self-test" if failed else "",
                    )
                )
            reported = Reported(at=self.now, assignment_version=found.version, models=tuple(reports), simulated=True)
            with self.context.database.session() as session:
                device = session.get(Device, device_id)
                assert device is not None
                presence.record_reported(device, reported)
                session.add(device)

    def telemetry(self, device_id: str, version: int, requests: int, errors: int, p95_ms: float = 1.0) -> None:
        self.seq += 1
        counted = ModelTelemetry(
            model="digits", version=version, requests=requests, errors=errors, latency_p95_ms=p95_ms
        )
        message = Telemetry(stream="s", seq=self.seq, at=self.now, window_s=10, models=(counted,))
        with self.context.database.session() as session:
            ingest.store(session, [StreamedItem(device_id, "telemetry", message, b"{}")], self.now)

    def tick(self, seconds: float = 1.0) -> None:
        self.orchestrator.tick(self.now)
        self.answer()
        self.now += seconds

    def start(self, version: int, phases: list[dict[str, Any]], **values: Any) -> str:
        request = rollouts.RolloutRequest(model="digits", version=version, group="all", phases=phases, **values)
        with self.context.database.session() as session:
            return rollouts.create(session, request, "test", self.now).id

    def rollout(self, rollout_id: str) -> SimpleNamespace:
        with self.context.database.session(read_only=True) as session:
            found = rollouts.get(session, rollout_id)
            return SimpleNamespace(
                status=found.status,
                phase=found.phase,
                reason=found.reason,
                **rollouts.counts(session, rollout_id),
                history=[(row.kind, row.device_id, row.reason) for row in rollouts.history(session, rollout_id)],
                devices={row.device_id: row.outcome for row in rollouts.exposed(session, rollout_id)},
            )

    def until(self, condition: Callable[[], bool], ticks: int = 30) -> None:
        for _ in range(ticks):
            if condition():
                return
            self.tick()
        raise AssertionError("the condition was not reached")

    def complete(self, version: int) -> str:
        """Roll a version out to everybody, to the end."""
        rollout = self.start(version, [{"percent": 100}])
        self.until(lambda: self.rollout(rollout).status == "completed")
        return rollout

    def versions(self) -> dict[str, int]:
        """What is assigned: device -> version of digits, 0 for none."""
        found = {}
        for device_id in self.accepted:
            assignment = self.assignment(device_id)
            files = () if assignment is None else assignment.bundles
            found[device_id] = next((f.custom.version for f in files if f.custom.model == "digits"), 0)
        return found


@pytest.fixture
def fleet(trusted_context: Context, ceremony: Any, kit: Any) -> Fleet:
    return Fleet(trusted_context, ceremony, kit, Orchestrator(trusted_context))
