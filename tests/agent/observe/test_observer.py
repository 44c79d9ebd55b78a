"""The danger: windows that count wrongly, drift that goes unseen, or requests that pay for being watched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgewise_agent.observe import observer as observing
from edgewise_agent.observe import resources
from edgewise_agent.observe.observer import Observer, ObserverConfig
from edgewise_protocol import messages
from edgewise_protocol.bounds import MAX_DRIFT_BYTES
from edgewise_protocol.features import input_features, output_features, sketch_window
from edgewise_protocol.messages import Drift, Telemetry


def drifts(outbox: Any) -> list[Drift]:
    return [
        messages.decode(Drift, item.payload, MAX_DRIFT_BYTES)
        for item in outbox.pending(0, 1000)
        if item.leaf == "drift"
    ]


def telemetries(outbox: Any) -> list[Telemetry]:
    return [messages.decode(Telemetry, item.payload) for item in outbox.pending(0, 1000) if item.leaf == "telemetry"]


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    pause, end = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        pause.wait(0.01)


def settled(observer: Observer, requests: int) -> None:
    """Wait until so many requests were seen: they are seen after their answer."""
    until(lambda: sum(window.requests for window in observer._windows.values()) == requests)


@pytest.fixture
def watch(watched: Any, outbox: Any) -> Iterator[Callable[..., Observer]]:
    made: list[Observer] = []

    def start(**config: Any) -> Observer:
        observer = Observer(watched.table, outbox, ObserverConfig(**config))
        observer.start()
        made.append(observer)
        return observer

    yield start
    for observer in made:
        observer.stop()


def test_a_window_holds_exactly_what_the_protocol_computes(watched: Any, outbox: Any, watch: Any) -> None:
    observer = watch(drift_window_samples=64, simulated=True)
    x = np.random.default_rng(1).normal(2.0, 1.0, size=(150, 5)).astype(np.float32)
    watched.ask([x[i : i + 7] for i in range(0, 150, 7)])
    settled(observer, 22)
    observer.stop()
    found = drifts(outbox)
    assert [d.samples for d in found] == [64, 64, 22]
    assert all((d.model, d.version, d.simulated) == ("watched", 7, True) for d in found)
    for i, drift in enumerate(found):
        part = x[i * 64 : (i + 1) * 64]
        values = {**input_features(part), **output_features(part @ watched.w, "classification")}
        expected = sketch_window(values, watched.baseline)
        assert drift.features.keys() == expected.keys()
        for name, sketch in expected.items():
            assert drift.features[name].counts == sketch.counts, name
            assert drift.features[name].mean == pytest.approx(sketch.mean, rel=1e-5)


def test_a_shift_of_the_inputs_is_seen_in_the_sketches(watched: Any, outbox: Any, watch: Any) -> None:
    observer = watch(drift_window_samples=200)
    rng = np.random.default_rng(2)
    watched.ask([rng.normal(0, 1, (200, 5)).astype(np.float32), rng.normal(3, 1, (200, 5)).astype(np.float32)])
    settled(observer, 2)
    observer.stop()
    same, shifted = (np.array(d.features["input.mean"].counts) / 200 for d in drifts(outbox))
    assert same.max() < 0.2
    assert shifted[-1] > 0.95


def test_a_large_window_is_sketched_in_parts_with_the_same_counts(watched: Any, outbox: Any, watch: Any) -> None:
    observer = watch(drift_window_samples=10_000)
    x = np.random.default_rng(3).normal(size=(5000, 5)).astype(np.float32)
    watched.ask([x[i : i + 500] for i in range(0, 5000, 500)])
    settled(observer, 10)
    observer.stop()
    (drift,) = drifts(outbox)
    assert drift.samples == 5000
    expected = sketch_window(input_features(x), watched.baseline)
    assert drift.features["input.std"].counts == expected["input.std"].counts


def test_a_window_is_closed_at_its_age(watched: Any, outbox: Any, watch: Any) -> None:
    watch(drift_window_samples=1000, drift_window_s=0.3)
    watched.ask([np.zeros((2, 5), np.float32)])
    until(lambda: len(drifts(outbox)) == 1)
    (drift,) = drifts(outbox)
    assert drift.samples == 2
    assert drift.window_s >= 0.3


def test_telemetry_counts_latency_errors_and_resources(watched: Any, outbox: Any, watch: Any) -> None:
    watch(telemetry_interval_s=0.4)
    watched.ask([np.zeros((1, 5), np.float32)] * 30)
    until(lambda: sum(m.requests for t in telemetries(outbox) for m in t.models) >= 30)
    first = next(t for t in telemetries(outbox) if t.models[0].requests)
    (model,) = first.models
    assert (model.model, model.version, model.errors) == ("watched", 7, 0)
    assert 0 < model.latency_p50_ms <= model.latency_p95_ms <= model.latency_max_ms
    assert first.rss_mib > 10
    assert first.cpu_s > 0
    assert not first.simulated
    until(lambda: telemetries(outbox)[-1].models[0].requests == 0)


def test_a_malformed_request_is_no_error_of_the_model(watched: Any, outbox: Any, watch: Any) -> None:
    observer = watch()
    with pytest.raises(Exception, match="shape"):
        watched.ask([np.zeros((1, 6), np.float32)])
    observer.stop()
    assert telemetries(outbox)[-1].models[0].requests == 0
    assert telemetries(outbox)[-1].models[0].errors == 0


def test_failures_of_the_model_are_counted(
    watched: Any, outbox: Any, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = watch()

    def broken(inputs: Any) -> Any:
        raise ZeroDivisionError("the runtime's surprise")

    monkeypatch.setattr(watched.table.lookup("watched").lane._engine, "infer", broken)
    with pytest.raises(Exception, match="failed unexpectedly"):
        watched.ask([np.zeros((1, 5), np.float32)])
    until(lambda: observer._windows != {})
    observer.stop()
    model = telemetries(outbox)[-1].models[0]
    assert (model.requests, model.errors) == (1, 1)
    health = watched.table.health("watched")
    assert (health.inferences_ok, health.errors) == (0, 1)
    assert "ZeroDivisionError" in health.last_error


def test_versions_are_kept_apart(watched: Any, outbox: Any, watch: Any) -> None:
    observer = watch(drift_window_samples=1000)
    watched.ask([np.zeros((3, 5), np.float32)])
    watched.activate(8)
    watched.ask([np.zeros((4, 5), np.float32)])
    settled(observer, 2)
    observer.stop()
    assert {(d.version, d.samples) for d in drifts(outbox)} == {(7, 3), (8, 4)}
    assert {(m.version, m.requests) for m in telemetries(outbox)[-1].models} == {(7, 1), (8, 1)}


def test_what_does_not_fit_the_queue_is_skipped_and_counted(
    watched: Any, outbox: Any, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The observer's thread is held, so that the queue fills."""
    monkeypatch.setattr(observing, "MAX_HELD_REQUESTS", 10)
    held = threading.Event()
    real = observing.feature_values

    def slow(*arguments: Any) -> Any:
        assert held.wait(20)
        return real(*arguments)

    monkeypatch.setattr(observing, "feature_values", slow)
    observer = watch(drift_window_samples=10_000)
    for _ in range(6):
        watched.ask([np.zeros((2, 5), np.float32)] * 10)
    settled(observer, 60)
    held.set()
    observer.stop()
    observed = sum(d.samples for d in drifts(outbox))
    assert observer.skipped > 0
    assert observed + observer.skipped == 120
    text = {metric.name: metric.samples[0].value for metric in observer.metrics()}
    assert text == {"edgewise_samples_observed_total": observed, "edgewise_samples_skipped_total": observer.skipped}


def test_resources_are_read_where_they_are_and_zero_where_not(tmp_path: Path) -> None:
    found = resources.read(tmp_path / "proc", tmp_path / "thermal")
    assert (found.rss_mib, found.pss_mib, found.load1, found.temperature_c) == (0, 0, 0, None)
    for i, text in enumerate(["41500\n", "66000\n", "-274000\n", "broken"]):
        (tmp_path / "thermal" / f"thermal_zone{i}").mkdir(parents=True)
        (tmp_path / "thermal" / f"thermal_zone{i}" / "temp").write_text(text)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "status").write_text("Name:\tx\nVmRSS:\t    2048 kB\n")
    (tmp_path / "proc" / "self" / "smaps_rollup").write_text("55d0 ---p\nPss:   1024 kB\nPss_Anon: 7 kB\n")
    (tmp_path / "proc" / "loadavg").write_text("0.52 0.4 0.3 1/99 1\n")
    found = resources.read(tmp_path / "proc", tmp_path / "thermal")
    assert (found.rss_mib, found.pss_mib, found.load1, found.temperature_c) == (2, 1, 0.52, 66.0)
    assert resources.read().rss_mib > 1
