"""Which version of each model answers now, and the swap from one to the next.

The table may be used from any thread. A version becomes active only after its engine has
answered once; the version before it answers until then, and finishes what it accepted.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from edgewise_protocol.manifest import Manifest
from edgewise_protocol.sketches import Baseline

from edgewise_agent.config import GatewayConfig
from edgewise_agent.engines.base import Tensors
from edgewise_agent.engines.errors import EngineError
from edgewise_agent.engines.registry import open_engine
from edgewise_agent.serving.errors import RetiredError, UnknownModelError
from edgewise_agent.serving.lane import Inputs, Lane, Outcome, Stats

DEFAULT_CAPACITY: Final = 64
_SWAPS_PER_REQUEST: Final = 3
_CLOSE_S: Final = 10.0


class ModelHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How the active version of a model has done since it became active."""

    version: int
    inferences_ok: int
    errors: int
    """Failures of the model; requests that were malformed do not count."""
    last_error: str
    since: float
    """Seconds since the epoch at which it became active."""


class ActiveModel(msgspec.Struct, frozen=True, kw_only=True):
    """One version that answers."""

    model: str
    version: int
    sha256: str
    manifest: Manifest
    baseline: Baseline | None
    lane: Lane

    @property
    def stats(self) -> Stats:
        """Its counters."""
        return self.lane.stats


class Observation(NamedTuple):
    """One request, after its answer. The arrays are shared and must not be changed."""

    active: ActiveModel
    inputs: Inputs
    outcome: Outcome
    elapsed_ms: float
    """Within the engine, without the wait in the queue."""


class Answer(NamedTuple):
    """Outputs, and the version that gave them."""

    active: ActiveModel
    outputs: Tensors


Observe = Callable[[Observation], None]


class ModelTable:
    """The active models.

    Args:
        threads: threads within one inference.
        capacity: requests that may wait for one model.
        gateway: the board that this agent stands for, if it does.
    """

    def __init__(
        self, threads: int = 1, capacity: int = DEFAULT_CAPACITY, gateway: GatewayConfig | None = None
    ) -> None:
        self._threads = threads
        self._gateway = gateway
        self._capacity = capacity
        self._active: dict[str, ActiveModel] = {}
        self._retiring: list[Lane] = []
        self._activating = threading.Lock()
        self._observe: Observe | None = None

    def watch(self, observe: Observe | None) -> None:
        """Let `observe` see every request after its answer, on the inference thread; it must not block."""
        self._observe = observe

    def activate(
        self,
        model: str,
        version: int,
        sha256: str,
        model_path: Path,
        manifest: Manifest,
        baseline: Baseline | None,
    ) -> None:
        """Open a version, let it answer once, and put it in the place of the one before.

        Blocks while the file loads. The version before goes on answering meanwhile.

        Raises:
            EngineError: it cannot be loaded or does not answer; the version before stays active.
        """
        with self._activating:
            engine = open_engine(manifest.requires.engine, model_path, manifest, self._threads, self._gateway)
            try:
                engine.warm_up()
            except EngineError:
                engine.close()
                raise

            def watch(inputs: Inputs, outcome: Outcome, elapsed_ms: float) -> None:
                if self._observe is not None:
                    self._observe(Observation(active, inputs, outcome, elapsed_ms))

            lane = Lane(f"infer-{model}-{version}", engine, self._capacity, watch)
            active = ActiveModel(
                model=model, version=version, sha256=sha256, manifest=manifest, baseline=baseline, lane=lane
            )
            before = self._active.get(model)
            self._active = {**self._active, model: active}
            self._retire(before)

    def deactivate(self, model: str) -> None:
        """Let a model answer no more; what it accepted is answered. Unknown names are no error."""
        with self._activating:
            before = self._active.get(model)
            self._active = {name: active for name, active in self._active.items() if name != model}
            self._retire(before)

    def close(self, timeout_s: float = _CLOSE_S) -> None:
        """Deactivate everything and wait, at most `timeout_s` per lane, until the engines are closed."""
        for name in self.names():
            self.deactivate(name)
        for lane in self._retiring:
            lane.join(timeout_s)

    def active(self) -> list[ActiveModel]:
        """The active versions, sorted by name."""
        now = self._active
        return [now[name] for name in sorted(now)]

    def names(self) -> list[str]:
        """Names of the active models, sorted."""
        return sorted(self._active)

    def lookup(self, model: str, version: int | None = None) -> ActiveModel:
        """The active version of a model.

        Raises:
            UnknownModelError: the model is not active, or not in that version.
        """
        active = self._active.get(model)
        if active is None:
            raise UnknownModelError(f"no model {model[:80]!r} is active on this device")
        if version is not None and active.version != version:
            raise UnknownModelError(f"model {model!r} is active in version {active.version}, not {version}")
        return active

    def health(self, model: str) -> ModelHealth:
        """How the active version does; `UnknownModelError` if there is none."""
        active = self.lookup(model)
        stats = active.stats
        return ModelHealth(
            version=active.version,
            inferences_ok=stats.ok,
            errors=stats.errors,
            last_error=stats.last_error,
            since=stats.since,
        )

    async def infer(self, model: str, version: int | None, inputs: Inputs) -> Answer:
        """Answer a request, without blocking the event loop.

        Raises:
            UnknownModelError: the model is not active, or not in that version.
            BusyError: too many requests wait for it.
            EngineError: the inputs are wrong, or the runtime failed.
        """
        for _ in range(_SWAPS_PER_REQUEST):
            active = self.lookup(model, version)
            try:
                return Answer(active, await _ask(active.lane, inputs))
            except RetiredError:
                continue
        raise UnknownModelError(f"model {model!r} is being replaced again and again; try again")

    def _retire(self, before: ActiveModel | None) -> None:
        self._retiring = [lane for lane in self._retiring if not lane.join(0)]
        if before is not None:
            before.lane.retire()
            self._retiring.append(before.lane)


async def _ask(lane: Lane, inputs: Inputs) -> Tensors:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Outcome] = loop.create_future()

    def settle(outcome: Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    def done(outcome: Outcome) -> None:
        try:
            loop.call_soon_threadsafe(settle, outcome)
        except RuntimeError:
            # The loop has been closed: nobody waits for the answer any more.
            return

    lane.submit(inputs, done)
    outcome = await future
    if isinstance(outcome, EngineError):
        raise outcome
    return outcome
