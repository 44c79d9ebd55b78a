"""The observer: watches the table of models, and puts telemetry and drift in the outbox.

A request pays for two counters and for one reference in a bounded queue. Features are
extracted on a thread of lower priority, many requests at a time; the samples that find the
queue full are skipped and counted. No raw input is kept longer than that, or leaves.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import numpy as np
from edgewise_protocol.features import Values
from edgewise_protocol.messages import Drift, Streamed, Telemetry
from edgewise_protocol.sketches import kll_available
from numpy.typing import NDArray

from edgewise_agent.engines.errors import EngineError, InputError
from edgewise_agent.observe import resources
from edgewise_agent.observe.errors import OversizeError
from edgewise_agent.observe.outbox import Make, Outbox
from edgewise_agent.observe.windows import DriftWindow, TelemetryWindow, feature_values, split
from edgewise_agent.serving.metrics import Metric, Sample
from edgewise_agent.serving.table import ActiveModel, ModelTable, Observation

log = logging.getLogger(__name__)

MAX_HELD_REQUESTS: Final = 1_024
MAX_HELD_BYTES: Final = 4 * 1024 * 1024
_JOINED_BYTES: Final = 256 * 1024
"""Inputs whose features are extracted in one go: each byte costs several while it is done."""
_GATHER_S: Final = 0.25
"""Wait after a first request, so that many are taken at once."""
_REST: Final = 3.0
"""Rest after work, times its duration: at most a quarter of one core, whatever the load."""
_MAX_REST_S: Final = 2.0
_LOWER_PRIORITY: Final = 10
_MAX_MODELS: Final = 64


class ObserverConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the observer: times in seconds."""

    telemetry_interval_s: float = 60.0
    drift_window_samples: int = 500
    drift_window_s: float = 300.0
    """A window with at least one sample is closed at this age."""
    simulated: bool = False
    kll: bool = False
    """Send quantile sketches too, where `datasketches` is installed."""


class ConfigLike(Protocol):
    """What the observer reads of any settings object."""

    @property
    def telemetry_interval_s(self) -> float: ...
    @property
    def drift_window_samples(self) -> int: ...
    @property
    def drift_window_s(self) -> float: ...
    @property
    def simulated(self) -> bool: ...


class _Held(NamedTuple):
    active: ActiveModel
    x: NDArray[Any]
    y: NDArray[Any]


_Key = tuple[str, int]


class Observer:
    """Watches a table until it is stopped."""

    def __init__(self, table: ModelTable, outbox: Outbox, config: ConfigLike) -> None:
        self._table = table
        self._outbox = outbox
        self._config = config
        self._kll = bool(getattr(config, "kll", False)) and kll_available()
        self._lock = threading.Lock()
        self._held: deque[_Held] = deque()
        self._held_bytes = 0
        self._skipped = 0
        self._observed = 0
        self._windows: dict[_Key, TelemetryWindow] = {}
        self._drift: dict[_Key, DriftWindow] = {}
        self._some = threading.Event()
        self._many = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._telemetry_began = time.monotonic()
        self._cpu_began = resources.read().cpu_s

    @property
    def skipped(self) -> int:
        """Samples whose features were not extracted, since the start."""
        return self._skipped

    def start(self) -> None:
        """Begin to watch."""
        self._table.watch(self._saw)
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching, and put what the open windows hold in the outbox."""
        self._table.watch(None)
        if self._thread is None:
            return
        self._stop.set()
        self._some.set()
        self._many.set()
        self._thread.join()
        self._thread = None

    def metrics(self) -> list[Metric]:
        """Metrics of the observer itself, for `/metrics`."""
        return [
            Metric(
                "edgewise_samples_observed_total",
                "counter",
                "Samples whose features went into a drift window.",
                [Sample({}, self._observed)],
            ),
            Metric(
                "edgewise_samples_skipped_total",
                "counter",
                "Samples that found the observer's queue full.",
                [Sample({}, self._skipped)],
            ),
        ]

    # ------------------------------------------------------------- on the inference threads

    def _saw(self, seen: Observation) -> None:
        if isinstance(seen.outcome, InputError):
            return
        active = seen.active
        failed = isinstance(seen.outcome, EngineError)
        with self._lock:
            window = self._windows.setdefault((active.model, active.version), TelemetryWindow())
            window.add(seen.elapsed_ms, failed)
        if active.baseline is None or isinstance(seen.outcome, EngineError):
            return
        x = seen.inputs[active.manifest.inputs[0].name]
        y = seen.outcome[active.manifest.outputs[0].name]
        size = x.nbytes + y.nbytes
        with self._lock:
            fits = len(self._held) < MAX_HELD_REQUESTS and self._held_bytes + size <= MAX_HELD_BYTES
            if not fits or x.ndim == 0 or y.ndim == 0 or x.shape[0] != y.shape[0]:
                self._skipped += x.shape[0] if x.ndim else 1
                return
            self._held.append(_Held(active, x, y))
            self._held_bytes += size
            number = len(self._held)
        if number == 1:
            self._some.set()
        elif number >= MAX_HELD_REQUESTS // 2 or self._held_bytes >= MAX_HELD_BYTES // 2:
            self._many.set()

    # ------------------------------------------------------------- on the observer's thread

    def _run(self) -> None:
        _lower_priority()
        while not self._stop.is_set():
            if self._some.wait(self._until_due()) and not self._stop.is_set():
                self._many.wait(_GATHER_S)
            begin = time.monotonic()
            self._step()
            self._stop.wait(min(_MAX_REST_S, _REST * (time.monotonic() - begin)))
        self._step()
        for key in list(self._drift):
            self._close(key)
        self._report()

    def _until_due(self) -> float:
        due = [self._telemetry_began + self._config.telemetry_interval_s]
        due += [window.opened + self._config.drift_window_s for window in self._drift.values()]
        return max(0.0, min(due) - time.monotonic())

    def _step(self) -> None:
        try:
            for active, values, number in self._extracted():
                self._add(active, values, number)
                # Hand the interpreter over between groups: a thread that asks for it waits 5 ms otherwise.
                time.sleep(0)
        except Exception:
            # The models' answers must not depend on whether they can be observed.
            log.exception("the observer could not take some samples")
        now = time.monotonic()
        for key, window in list(self._drift.items()):
            if now - window.opened >= self._config.drift_window_s:
                self._close(key)
        if now - self._telemetry_began >= self._config.telemetry_interval_s:
            self._report()

    def _extracted(self) -> Iterator[tuple[ActiveModel, Values, int]]:
        """Feature values of what is held, like samples joined."""
        with self._lock:
            held, self._held, self._held_bytes = self._held, deque(), 0
            self._some.clear()
            self._many.clear()
        while held:
            first = held.popleft()
            xs, ys, size = [first.x], [first.y], first.x.nbytes
            while held and _alike(first, held[0]) and size + held[0].x.nbytes <= _JOINED_BYTES:
                following = held.popleft()
                xs.append(following.x)
                ys.append(following.y)
                size += following.x.nbytes
            x = xs[0] if len(xs) == 1 else np.concatenate(xs)
            y = ys[0] if len(ys) == 1 else np.concatenate(ys)
            rows = max(1, x.shape[0] * _JOINED_BYTES // max(1, x.nbytes))
            for i in range(0, x.shape[0], rows):
                part = x[i : i + rows]
                yield first.active, feature_values(part, y[i : i + rows], first.active.manifest.task), part.shape[0]

    def _add(self, active: ActiveModel, values: Values, number: int) -> None:
        baseline, key = active.baseline, (active.model, active.version)
        if baseline is None:
            return
        size = max(1, self._config.drift_window_samples)
        open_window = self._drift.get(key)
        first = size - open_window.samples if open_window is not None else size
        for piece, count in split(values, number, first, size):
            window = self._drift.get(key)
            if window is None:
                window = self._drift[key] = DriftWindow(baseline, time.monotonic(), kll=self._kll)
            window.add(piece, count)
            self._observed += count
            if window.samples >= size:
                self._close(key)

    def _close(self, key: _Key) -> None:
        window = self._drift.pop(key)
        sketches = window.sketches()
        message = partial(
            Drift,
            model=key[0],
            version=key[1],
            window_s=time.monotonic() - window.opened,
            samples=window.samples,
            simulated=self._config.simulated,
        )
        plain = {name: msgspec.structs.replace(sketch, kll="") for name, sketch in sketches.items()}
        for features in (sketches, plain):
            try:
                self._outbox.put("drift", _streamed(partial(message, features=features)))
                return
            except OversizeError as error:
                log.warning("a drift window of %s is too long: %s", key[0], error)

    def _report(self) -> None:
        now, used = time.monotonic(), resources.read()
        with self._lock:
            windows, self._windows = self._windows, {}
        for active in self._table.active():
            windows.setdefault((active.model, active.version), TelemetryWindow())
        models = tuple(window.report(*key) for key, window in sorted(windows.items()))[:_MAX_MODELS]
        window_s, cpu_s = now - self._telemetry_began, used.cpu_s - self._cpu_began
        self._telemetry_began, self._cpu_began = now, used.cpu_s
        waiting, dropped = len(self._outbox), self._outbox.dropped
        message = partial(
            Telemetry,
            window_s=window_s,
            models=models,
            rss_mib=used.rss_mib,
            cpu_s=max(0.0, cpu_s),
            load1=used.load1,
            temperature_c=used.temperature_c,
            outbox_messages=waiting,
            outbox_dropped=dropped,
            simulated=self._config.simulated,
        )
        self._outbox.put("telemetry", _streamed(message))


def _streamed(message: Callable[..., Streamed]) -> Make:
    return lambda stream, seq, at: message(stream=stream, seq=seq, at=at)


def _alike(a: _Held, b: _Held) -> bool:
    return (
        a.active is b.active
        and a.x.shape[1:] == b.x.shape[1:]
        and a.y.shape[1:] == b.y.shape[1:]
        and a.x.dtype == b.x.dtype
    )


def _lower_priority() -> None:
    """On Linux a priority is a thread's own; where it cannot be lowered nothing is lost."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWER_PRIORITY)
    except (OSError, AttributeError):
        log.debug("the observer's priority cannot be lowered")
