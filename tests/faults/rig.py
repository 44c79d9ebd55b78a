"""One device without a network: the whole agent as its composition root makes it, but for the connection.

The session hands out retained messages from memory, and the self-test's process is forked instead
of started afresh, since thousands of them are run. The installer's thread is not started either: the
test takes its steps one by one, so that the same operations come in the same order each time.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import io
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import edgewise_agent.app as app
import msgspec
import numpy as np
from edgewise_agent.config import AgentConfig, ProbationConfig, SelfTestConfig
from edgewise_agent.engines.errors import InferenceError
from edgewise_agent.errors import SelfTestCrashError, StorageError
from edgewise_agent.install import self_test, self_test_child
from edgewise_agent.install.state import ModelState
from edgewise_agent.session.shell import Session
from edgewise_protocol import topics
from edgewise_protocol.chunks import build_index, iter_chunks

CONFIG = AgentConfig(
    http_port=0,
    min_free_mib=0,
    want_attempts=1,
    want_wait_s=0.05,
    fetch_timeout_s=10.0,
    retry_min_s=0.05,
    retry_max_s=0.05,
    probation=ProbationConfig(min_inferences=3, seconds=600.0),
    self_test=SelfTestConfig(nice=0),
)
X = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
_IN_VAIN = 3
"""Refusals of the disk in a row after which the agent is left to wait."""


class MemoryBroker:
    """Retained messages."""

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {topics.SENTINEL: b"1"}

    def keep_blob(self, sha256: str, data: bytes) -> None:
        for n, chunk in enumerate(iter_chunks(io.BytesIO(data))):
            self.retained[topics.blob(sha256, n)] = chunk

    def keep_bundle(self, file: Any, data: bytes) -> None:
        self.keep_blob(file.sha256, data)
        self.keep_blob(file.custom.chunk_index, build_index(io.BytesIO(data)))


class MemorySession:
    """Stands in for `edgewise_agent.session.shell.Session`; answers on a thread of its own, as a broker does."""

    on_own_thread = False

    def __init__(self, broker: MemoryBroker, made_with: dict[str, Any]) -> None:
        self._broker = broker
        self._on_message, self._on_subscribed = made_with["on_message"], made_with["on_subscribed"]
        self._asked: SimpleQueue[tuple[int, Sequence[str]]] = SimpleQueue()
        self._mid = 0
        self.online = False
        self.last_error = ""

    def start(self) -> None:
        threading.Thread(target=self._answer, name="session", daemon=True).start()
        self.online = True

    def _answer(self) -> None:
        while True:
            mid, names = self._asked.get()
            self._on_subscribed(mid)
            for name in names:
                if name in self._broker.retained:
                    self._on_message(name, self._broker.retained[name])

    def wait_online(self, _timeout: float) -> bool:
        return self.online

    def subscribe(self, filters: Sequence[str]) -> int:
        self._mid += 1
        self._asked.put((self._mid, list(filters)))
        return self._mid

    def unsubscribe(self, filters: Sequence[str]) -> None: ...
    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None: ...
    def watch_endings(self, on_ending: Callable[[Any], None]) -> None: ...
    def use(self, endpoint: Any) -> None: ...
    def slow_down(self, slow: bool) -> None: ...
    def reconnect(self, reason: str) -> None:
        raise AssertionError(f"the agent gives the connection up: {reason}")


class ForkedSelfTester(self_test.SelfTester):
    """The real examination in a real child process, without the start of an interpreter."""

    disarm: Callable[[], object] = staticmethod(lambda: None)

    def _child(
        self, arguments: list[str], interrupted: Callable[[], bool], timeout_s: float
    ) -> self_test_child.Verdict:
        answer, end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                type(self).disarm()
                os.dup2(end, 1)
                os._exit(self_test_child.main(arguments))
            finally:
                os._exit(70)
        os.close(end)
        with os.fdopen(answer, "rb") as found:
            said = found.read()
        if status := os.waitpid(child, 0)[1]:
            raise SelfTestCrashError(f"the self-test's process ended with {status}")
        return msgspec.json.decode(said, type=self_test_child.Verdict)


def warm_up() -> None:
    """Import what the agent imports when it is needed: otherwise every process that is forked would."""
    for name in (
        "edgewise_agent.engines.onnx",
        "edgewise_protocol.golden",
        "onnxruntime",
        "safetensors.numpy",
        "zipfile",
    ):
        importlib.import_module(name)


def install_rig(broker: MemoryBroker, disarm: Callable[[], object]) -> None:
    """Let `Agent` be made with these stand-ins in this process."""

    def make_session(*arguments: Any, **named: Any) -> MemorySession:
        return MemorySession(broker, inspect.signature(Session).bind(*arguments, **named).arguments)

    ForkedSelfTester.disarm = staticmethod(disarm)
    app.Session = make_session  # type: ignore[assignment,misc]
    app.SelfTester = ForkedSelfTester  # type: ignore[misc]


class Device:
    """A started agent. `faulty` is the version whose engine breaks in service."""

    def __init__(self, state: Path, simulator: Any, faulty: int) -> None:
        self._simulator, self._faulty = simulator, faulty
        self.agent = app.Agent(state, CONFIG)
        self.installer = self.agent.installer
        self.refusals = 0

    def boot(self) -> None:
        self.installer.boot()

    def online(self) -> None:
        self.agent.session.start()

    @property
    def model(self) -> ModelState:
        return self.installer.state.models.get(self._simulator.MODEL) or ModelState(model=self._simulator.MODEL)

    def infer(self) -> int:
        """The version that answers, its answer being what numpy computes for that version."""
        answer = asyncio.run(self.agent.table.infer(self._simulator.MODEL, None, {"x": X}))
        version = answer.active.version
        expected = self._simulator.logits_of(version, X)
        assert np.allclose(answer.outputs["logits"], expected, atol=1e-4), f"version {version} does not answer as numpy"
        return version

    def settle(self, done: Callable[[ModelState], bool], *, disk: bool = True, timeout_s: float = 30.0) -> bool:
        """Take the installer's steps until it is done; False when the disk lets it come no further.

        Args:
            disk: false gives up when only a disk with space could help.
        """
        deadline, in_vain = time.monotonic() + timeout_s, 0
        while time.monotonic() < deadline:
            installer = self.installer
            self._break_what_is_faulty()
            now = time.monotonic()
            timers = min(installer._settled_at, installer._look_again_at)
            if installer._urgent() or installer._jobs or installer._collect or now >= timers:
                try:
                    installer._once()
                    in_vain = 0
                except StorageError:
                    self.refusals += 1
                    in_vain += 1
                    installer._make_room()  # As the installer's thread does.
                    if in_vain >= _IN_VAIN and not disk:
                        return False
            elif done(self.model):
                return True
            elif self.model.state == "probation":
                self._try_in_service()
            elif timers - now < CONFIG.retry_max_s + 1:
                if not disk:
                    return False
                threading.Event().wait(timers - now)
            else:
                raise AssertionError(f"nothing is left to do, but the model is {self.model}; {installer.state}")
        raise AssertionError(f"not settled in {timeout_s} s: {self.model}")

    def _try_in_service(self) -> None:
        for _ in range(CONFIG.probation.min_inferences):
            try:
                self.infer()
            except InferenceError:
                break
        self.installer._watcher.tick(time.monotonic())

    def _break_what_is_faulty(self) -> None:
        active = {found.model: found for found in self.agent.table.active()}.get(self._simulator.MODEL)
        if active is not None and active.version == self._faulty:
            active.lane._engine._run = _broken  # type: ignore[attr-defined]

    def acknowledge(self) -> None:
        """The server has stored what the outbox holds."""
        waiting = self.agent.outbox.pending(0, 1000)
        if waiting:
            self.agent.outbox.acknowledge(self.agent.outbox.stream, waiting[-1].seq)


def _broken(_inputs: Any) -> Any:
    raise InferenceError("deliberately broken")
