"""The danger: a swap that loses requests, leaves nothing serving, or keeps old engines in memory."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from edgewise_agent.engines import EngineError, InputError
from edgewise_agent.serving.errors import BusyError, UnknownModelError
from edgewise_agent.serving.table import Observation


def ask(table: Any, x: np.ndarray, version: int | None = None) -> Any:
    return asyncio.run(table.infer("scale", version, {"x": x}))


X = np.array([[1, 2, 3]], np.float32)


def test_the_newest_version_answers(models: Any) -> None:
    models.activate_scale(1, 2.0)
    assert ask(models.table, X).outputs["y"].tolist() == [[2, 4, 6]]
    models.activate_scale(2, 3.0)
    answer = ask(models.table, X)
    assert (answer.active.version, answer.outputs["y"].tolist()) == (2, [[3, 6, 9]])
    assert models.table.names() == ["scale"]
    with pytest.raises(UnknownModelError, match="active in version 2, not 1"):
        ask(models.table, X, 1)


def test_a_version_that_cannot_be_opened_leaves_the_one_before(models: Any, tmp_path: Any) -> None:
    models.activate_scale(1, 2.0)
    manifest = models.table.lookup("scale").manifest
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    with pytest.raises(EngineError):
        models.table.activate("scale", 2, "1" * 64, bad, manifest, None)
    assert ask(models.table, X).active.version == 1


def test_a_version_that_does_not_answer_leaves_the_one_before(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    models.activate_scale(1, 2.0)
    from edgewise_agent.engines.onnx import OnnxEngine

    def broken(self: Any, inputs: Any) -> Any:
        raise EngineError("it loads, and does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(OnnxEngine, "_run_once", broken)
        with pytest.raises(EngineError, match="does not answer"):
            models.activate_scale(2, 3.0)
    assert ask(models.table, X).active.version == 1


def test_requests_in_work_are_answered_by_the_version_that_took_them(models: Any) -> None:
    models.activate_scale(1, 2.0)
    lane = models.table.lookup("scale").lane
    go, results = threading.Event(), []
    real = lane._engine.infer

    def held(inputs: Any) -> Any:
        assert go.wait(20)
        return real(inputs)

    lane._engine.infer = held
    done = threading.Semaphore(0)
    for _ in range(3):
        lane.submit({"x": X}, lambda outcome: (results.append(outcome), done.release()))
    models.activate_scale(2, 5.0)
    assert ask(models.table, X).outputs["y"].tolist() == [[5, 10, 15]]
    assert results == []
    go.set()
    for _ in range(3):
        assert done.acquire(timeout=20)
    assert [r["y"].tolist() for r in results] == [[[2, 4, 6]]] * 3
    assert lane.join(20)


def test_a_replaced_engine_is_let_go(models: Any) -> None:
    models.activate_scale(1, 2.0)
    lane = models.table.lookup("scale").lane
    engine = weakref.ref(lane._engine)
    models.activate_scale(2, 3.0)
    assert lane.join(20)
    del lane
    models.activate_scale(3, 3.0)
    gc.collect()
    assert engine() is None


def test_a_deactivated_model_is_unknown(models: Any) -> None:
    models.activate_scale(1, 2.0)
    models.table.deactivate("scale")
    models.table.deactivate("scale")
    assert models.table.names() == []
    for call in (models.table.health, models.table.lookup):
        with pytest.raises(UnknownModelError):
            call("scale")


def test_health_counts_answers_and_does_not_blame_the_model_for_bad_input(models: Any) -> None:
    models.activate_scale(1, 2.0)
    for _ in range(5):
        ask(models.table, X)
    with pytest.raises(InputError):
        ask(models.table, np.zeros((1, 9), np.float32))
    health = models.table.health("scale")
    assert (health.version, health.inferences_ok, health.errors, health.last_error) == (1, 5, 0, "")
    assert health.since > 1_600_000_000
    models.activate_scale(2, 2.0)
    assert models.table.health("scale").inferences_ok == 0


def test_a_full_queue_refuses(models: Any) -> None:
    models.activate_scale(1, 2.0)
    lane = models.table.lookup("scale").lane
    go = threading.Event()
    lane._engine.infer = lambda inputs: go.wait(20) and {"y": X}
    for _ in range(8):
        lane.submit({"x": X}, lambda outcome: None)
    with pytest.raises(BusyError, match="8 requests wait"):
        lane.submit({"x": X}, lambda outcome: None)
    go.set()


def test_a_client_that_gave_up_does_not_disturb_the_lane(models: Any) -> None:
    models.activate_scale(1, 2.0)

    async def give_up() -> None:
        task = asyncio.create_task(models.table.infer("scale", None, {"x": X}))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for _ in range(7):
        asyncio.run(give_up())
    assert ask(models.table, X).outputs["y"].tolist() == [[2, 4, 6]]


def test_watchers_see_what_was_asked_and_answered(models: Any) -> None:
    seen: list[Observation] = []
    told = threading.Event()

    def watch(observation: Observation) -> None:
        seen.append(observation)
        told.set()

    models.table.watch(watch)
    models.activate_scale(4, 2.0)
    ask(models.table, X)
    assert told.wait(20)
    (observation,) = seen
    assert observation.active.version == 4
    assert observation.inputs["x"] is X
    assert isinstance(observation.outcome, dict)
    assert observation.outcome["y"].tolist() == [[2, 4, 6]]
    assert observation.elapsed_ms > 0
