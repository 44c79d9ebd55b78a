"""Danger: drift is judged against the wrong baseline, or alerts never close; a gap in a stream is taken for stored."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from edgewise_protocol.bundle import BundleReader, file_entry, write_bundle
from edgewise_protocol.chunks import build_index
from edgewise_protocol.features import build_baseline, input_features, sketch_window
from edgewise_protocol.messages import Drift
from edgewise_protocol.sketches import Baseline, encode_baseline
from edgewise_protocol.targets import custom_for
from edgewise_server.drift.thresholds import DriftSettings
from edgewise_server.models.jobs import Job
from edgewise_server.services import assignments, ingest, monitoring
from edgewise_server.services.baselines import Baselines
from edgewise_server.services.ingest import StreamedItem
from msgspec.structs import replace as with_fields
from sqlmodel import select

RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.normal(0, 1, (2000, 4, 4)).astype(np.float32)
LOGITS = RANDOM.normal(0, 1, (2000, 3))


def with_baseline(made: Any, baseline: Baseline) -> Any:
    """The same bundle with a baseline in it."""
    import hashlib

    reader = BundleReader(io.BytesIO(made.data))
    files = {e.name: reader.read(e.name) for e in reader.manifest.files} | {"baseline.json": encode_baseline(baseline)}
    manifest = with_fields(
        reader.manifest,
        baseline_file="baseline.json",
        files=tuple(file_entry(name, data) for name, data in sorted(files.items())),
    )
    out = io.BytesIO()
    write_bundle(out, manifest, files)
    data = out.getvalue()
    index = hashlib.sha256(build_index(io.BytesIO(data))).hexdigest()
    file = with_fields(
        made.file, length=len(data), sha256=hashlib.sha256(data).hexdigest(), custom=custom_for(manifest, index)
    )
    return replace(made, data=data, file=file)


@pytest.fixture
def watched(fleet: Any, kit: Any) -> Any:
    """Two devices that run version 1, whose bundle has a baseline of normal noise."""
    fleet.baseline = build_baseline(NORMAL, LOGITS, "classification")
    fleet.bundle = with_baseline(kit.make_bundle(), fleet.baseline)
    fleet.publish(fleet.bundle)
    fleet.add("d0", "d1")
    fleet.complete(1)
    return fleet


def send(fleet: Any, device: str, *, shift: float = 0.0, samples: int = 200) -> None:
    x = RANDOM.normal(shift, 1, (samples, 4, 4)).astype(np.float32)
    fleet.seq += 1
    drift = Drift(
        stream="drift",
        seq=fleet.seq,
        at=fleet.now,
        model="digits",
        version=1,
        window_s=10,
        samples=samples,
        features=sketch_window(input_features(x), fleet.baseline),
        simulated=True,
    )
    with fleet.context.database.session() as session:
        ingest.store(session, [StreamedItem(device, "drift", drift, b"")], fleet.now)
    fleet.tick()


def open_alerts(fleet: Any) -> list[tuple[str, str]]:
    with fleet.context.database.session(read_only=True) as session:
        return [(a.device_id, a.severity) for a in monitoring.alerts(session, only_open=True, limit=10)]


def test_the_drifting_device_alone_raises_an_alert_and_a_retrain_request(watched: Any) -> None:
    for _ in range(5):
        send(watched, "d0", shift=0.0)
        send(watched, "d1", shift=2.0)
    assert open_alerts(watched) == [("d1", "severe")]
    with watched.context.database.session(read_only=True) as session:
        (alert,) = monitoring.alerts(session, only_open=True, limit=10)
        assert alert.simulated and "input.mean" in alert.features and "PSI" in alert.reason
        retrain = [job for job in session.exec(select(Job)) if job.kind == "retrain"]
        assert [job.payload["model"] for job in retrain] == ["digits"]
        windows = monitoring.windows(session, model="digits", device_ids=["d1"], limit=10)
        assert all(w.drifted and w.sha256 == watched.bundle.file.sha256 for w in windows)
    for _ in range(3):
        send(watched, "d1", shift=0.0)
    assert open_alerts(watched) == []


def test_an_alert_on_the_new_version_can_hold_a_rollout(watched: Any, kit: Any) -> None:
    for _ in range(2):
        send(watched, "d0", shift=2.0)
        send(watched, "d1", shift=2.0)
    rollout = watched.start(1, [{"percent": 100}], gates={"max_drift_alerts": 0, "on_breach": "pause"})
    watched.tick()
    watched.tick()
    found = watched.rollout(rollout)
    assert found.status == "paused" and "drift alerts" in found.reason


def test_faint_drift_of_many_small_windows_shows_when_merged(watched: Any) -> None:
    for _ in range(12):
        send(watched, "d0", shift=0.15, samples=40)
        send(watched, "d1", shift=0.15, samples=40)
    with watched.context.database.session(read_only=True) as session:
        windows = monitoring.windows(session, model="digits", version=1, limit=100)
        assert len(windows) == 24
        merged = monitoring.merged(windows, Baselines(watched.context.blobs), DriftSettings(), 1e6)
        assert sum(w.drifted for w in windows) < 12
    total = [m for m in merged if m.samples == 24 * 40]
    assert total and total[0].devices == ("d0", "d1") and total[0].score.drifted


def test_a_bundle_without_a_baseline_is_not_judged(fleet: Any, kit: Any) -> None:
    fleet.publish(kit.make_bundle())
    fleet.add("d0")
    fleet.baseline = build_baseline(NORMAL, LOGITS, "classification")
    fleet.complete(1)
    send(fleet, "d0", shift=5.0)
    send(fleet, "d0", shift=5.0)
    assert open_alerts(fleet) == []


def test_acknowledging(watched: Any) -> None:
    send(watched, "d1", shift=3.0)
    with watched.context.database.session() as session:
        (alert,) = monitoring.alerts(session, only_open=True, limit=10)
        assert monitoring.acknowledge(session, alert.id, "ann", 5.0).acked_by == "ann"
        assert monitoring.acknowledge(session, alert.id, "bob", 6.0).acked_by == "ann"


def test_a_window_that_nothing_can_be_asked_of_is_judged_by_its_bins(watched: Any) -> None:
    """Found in review: an empty KLL sketch raised in every round of the loop, and renewals came after it."""
    from datasketches import kll_floats_sketch

    empty = base64.b64encode(kll_floats_sketch(200).serialize()).decode()
    x = RANDOM.normal(0, 1, (200, 4, 4)).astype(np.float32)
    sketched = sketch_window(input_features(x), watched.baseline)
    features = {name: with_fields(s, kll=empty if s.kind == "numeric" else "") for name, s in sketched.items()}
    drift = Drift(stream="drift", seq=1, at=0, model="digits", version=1, window_s=10, samples=200, features=features)
    with watched.context.database.session() as session:
        ingest.store(session, [StreamedItem("d0", "drift", drift, b"")], watched.now)
    watched.tick()
    with watched.context.database.session(read_only=True) as session:
        (window,) = monitoring.windows(session, device_ids=["d0"], limit=10)
        assert window.scores and not window.drifted


def test_what_one_step_raises_keeps_nothing_else_from_being_done(watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def fail(*_: Any) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(monitoring, "score_pending", fail)
    monkeypatch.setattr(assignments, "renew", lambda *_, **__: done.append("renewed"))
    watched.now += 10
    watched.tick()
    assert done == ["renewed"]
