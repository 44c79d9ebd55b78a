"""Danger: a form that is judged or timed otherwise than a device will ask it, or by what was found of another model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgewise_converter.cache import Cache
from edgewise_converter.engines.answering import answer, answer_sequences
from edgewise_converter.engines.named import NamedModel, Tensors
from edgewise_converter.errors import EngineError
from edgewise_converter.hardware import read_host
from edgewise_converter.requests import Requests
from edgewise_converter.search.bench import Bench, Made
from edgewise_converter.search.candidates import Candidate, Origin, candidates, contained
from edgewise_converter.sources.opening import open_model
from edgewise_converter.sources.reading import Wanted
from edgewise_protocol.manifest import StatePair, TensorSpec
from onnx import TensorProto, helper, numpy_helper

STEPS = 400
CELLS = 32
STATE = (("s", "next"),)


def filter_() -> bytes:
    """An ONNX file, a leaky sum: next = 0.97 s + u B, y = next C. Errors of its state add up from step to step."""
    rng = np.random.default_rng(0)
    both = np.concatenate([0.97 * np.eye(CELLS), 0.01 * np.sign(rng.normal(size=(8, CELLS)))]).astype(np.float32)
    out = np.zeros((CELLS, 4), np.float32)
    out[np.arange(CELLS), np.arange(CELLS) % 4] = rng.normal(size=CELLS)
    graph = helper.make_graph(
        [
            helper.make_node("Concat", ["s", "u"], ["su"], axis=1),
            helper.make_node("MatMul", ["su", "both"], ["next"]),
            helper.make_node("MatMul", ["next", "out"], ["y"]),
        ],
        "filter",
        [
            helper.make_tensor_value_info("u", TensorProto.FLOAT, [1, 8]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, [1, CELLS]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4]),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1, CELLS]),
        ],
        [numpy_helper.from_array(both, "both"), numpy_helper.from_array(out, "out")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def wander(seed: int) -> Any:
    rng, found = np.random.default_rng(seed), np.zeros((STEPS, 8))
    for i in range(1, STEPS):
        found[i] = np.clip(0.98 * found[i - 1] + 0.2 * rng.normal(size=8), -2, 2)
    return found.astype(np.float32)


@pytest.fixture
def stateful(tmp_path: Path) -> tuple[Path, Wanted]:
    path = tmp_path / "filter.onnx"
    path.write_bytes(filter_())
    np.savez(tmp_path / "c.npz", u=wander(1))
    np.savez(tmp_path / "h.npz", u=wander(2))
    return path, Wanted(calibration=tmp_path / "c.npz", heldout=tmp_path / "h.npz", state=STATE)


def bench_of(path: Path, wanted: Wanted, cache: Path | None = None) -> Bench:
    return Bench(open_model(str(path), wanted), Cache(cache), read_host())


def form(profile: Any, name: str) -> Candidate:
    return next(c for c in candidates(profile, Origin("onnx")) if c.name == name)


def test_a_form_is_judged_on_its_own_state_as_a_client_runs_it(stateful: Any, narrow: Any) -> None:
    bench = bench_of(*stateful)
    candidate = form(narrow("x86-64"), "onnxruntime int8")
    made = bench.make(candidate)
    loaded, state, found = bench.open(candidate, made), np.zeros((1, CELLS), np.float32), []
    for u in wander(2):
        answers = loaded.infer({"u": u[None], "s": state})
        state = answers["next"]
        found.append(answers["y"][0])
    want = bench.model.reference_outputs()["y"]
    one_step = bench.evaluate(bench.run(candidate, made, bench.model.heldout), bench.model.reference_outputs())
    score = bench.score(candidate, made)
    assert np.array_equal(bench.answers(candidate, made)["y"], np.stack(found).reshape(want.shape))
    assert score.drop > 10 * one_step.drop > 0


def test_sequences_begin_where_their_first_request_says() -> None:
    class Sum(Fake):
        def _run(self, feeds: Mapping[str, Any]) -> Tensors:
            return {"next": feeds["s"] + feeds["x"], "y": feeds["s"] + feeds["x"]}

    feeds = {"x": np.ones((5, 1), np.float32), "s": np.array([[10], [0], [20], [0], [0]], np.float32)}
    pairs = (StatePair(input="s", output="next"),)
    found = answer_sequences(Sum(-1), Requests(feeds), pairs, (2, 3))["y"]
    assert found[:, 0].tolist() == [11, 12, 21, 22, 23]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (lambda s: {"y": s}, "no output 'next'"),
        (lambda s: {"next": np.concatenate([s, s], 1), "y": s}, r"\[1, 2\], and takes it as \[1, 1\]"),
        (lambda s: {"next": s * np.nan, "y": s}, "NaN or infinite"),
    ],
    ids=["missing", "shape", "nan"],
)
def test_a_state_that_cannot_be_fed_back_is_told(given: Callable[[Any], Tensors], named: str) -> None:
    class Broken(Fake):
        def _run(self, feeds: Mapping[str, Any]) -> Tensors:
            return given(feeds["s"])

    requests = Requests({"s": np.ones((2, 1), np.float32)})
    with pytest.raises(EngineError, match=named):
        answer_sequences(Broken(-1), requests, (StatePair(input="s", output="next"),), (2,))


def test_what_was_found_for_another_task_or_state_is_not_taken(
    even: Path, samples: Path, tmp_path: Path, stateful: Any, narrow: Any
) -> None:
    candidate = form(narrow("x86-64"), "onnxruntime int8")
    for task, basis in (("regression", "r-squared"), ("classification", "top-1")):
        bench = bench_of(even, Wanted(heldout=samples, task=task), tmp_path / "cache")
        assert [o.basis for o in bench.score(candidate, bench.make(candidate)).outputs] == [basis]
    path, _ = stateful
    rng = np.random.default_rng(3)
    given = {"u": rng.normal(size=(20, 8)).astype(np.float32), "s": rng.normal(size=(20, CELLS)).astype(np.float32)}
    np.savez(tmp_path / "s.npz", **given)
    for state, outputs in (((), ["y", "next"]), (STATE, ["y"])):
        bench = bench_of(path, Wanted(heldout=tmp_path / "s.npz", state=state), tmp_path / "cache")
        assert [o.output for o in bench.score(candidate, bench.make(candidate)).outputs] == outputs


def test_everything_that_judges_is_in_the_key(stateful: Any) -> None:
    model = open_model(str(stateful[0]), stateful[1])
    renamed = tuple(TensorSpec(name=f"{s.name}2", dtype=s.dtype, shape=s.shape) for s in model.outputs)
    others = [
        replace(model, task="classification"),
        replace(model, metric="top1"),
        replace(model, state=()),
        replace(model, sequences=(1,) * STEPS),
        replace(model, outputs=renamed),
        replace(model, in_order=True),
        replace(model, y=np.zeros(STEPS, np.int64)),
    ]
    assert len({m.heldout_sha256 for m in (model, *others)}) == len(others) + 1


class Fake(NamedModel):
    """Answers what it is asked with, and keeps how many rows each call had."""

    engine, version, precision = "fake", "1", "float32"
    inputs = outputs = (TensorSpec(name="x", dtype="FP32", shape=(-1, 1)),)

    def __init__(self, batch: int | None, output: str = "y") -> None:
        self.batch, self._output, self.rows, self.loads = batch, output, list[int](), 0

    def _run(self, feeds: Mapping[str, Any]) -> Tensors:
        self.rows.append(len(feeds["x"]))
        return {self._output: feeds["x"]}

    def infer(self, feeds: Mapping[str, Any]) -> Tensors:
        self.loads += 1  # as a file with variables does
        return super().infer(feeds)

    def steps(self) -> dict[str, float]:
        return {}


@pytest.mark.parametrize(("batch", "rows"), [(-1, 1), (4, 4)])
def test_one_call_is_timed_without_what_a_stream_begins_with(
    even: Path, samples: Path, narrow: Any, monkeypatch: pytest.MonkeyPatch, batch: int, rows: int
) -> None:
    bench, fake = bench_of(even, Wanted(heldout=samples)), Fake(batch)
    monkeypatch.setattr(bench, "open", lambda *_: fake)
    monkeypatch.setattr("edgewise_converter.search.bench.ROUNDS", 1)
    candidate = form(narrow("x86-64"), "onnxruntime float32")
    assert bench.latencies([(candidate, bench.make(candidate))])[candidate.name] > 0
    assert fake.loads == 0 and set(fake.rows) == {rows}


def test_a_form_without_the_sources_outputs_is_told_by_name(
    even: Path, samples: Path, narrow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(even, Wanted(heldout=samples))
    candidate = form(narrow("x86-64"), "onnxruntime float32")
    made = bench.make(candidate)
    monkeypatch.setattr(bench, "open", lambda *_: Fake(-1, "other"))
    with pytest.raises(EngineError, match="no output 'y'; it gives other"):
        bench.run(candidate, made, bench.model.calibration)


@pytest.mark.parametrize("packed", [False, True], ids=["onnx", "container"])
def test_where_a_batch_shares_a_scale_samples_are_asked_one_by_one(
    even: Path, tmp_path: Path, x: Any, narrow: Any, packed: bool
) -> None:
    loud = x.copy()
    loud[::10] *= 100
    np.savez(tmp_path / "loud.npz", x=loud)
    bench = bench_of(even, Wanted(heldout=tmp_path / "loud.npz"))
    candidate = form(narrow("x86-64"), "onnxruntime int8-dynamic, free shapes")
    candidate = (contained(candidate) or candidate) if packed else candidate
    made: Made = bench.make(candidate)
    loaded = bench.open(candidate, made)
    assert (made.artifact.format == "ort") == packed and loaded.batch == -1 and loaded.mixes_batch
    heldout = bench.model.heldout
    alone = np.concatenate([loaded.infer(feeds)["y"] for feeds in heldout.each()])
    assert not np.allclose(loaded.infer(heldout.feeds)["y"], alone, atol=1e-3)
    assert np.array_equal(bench.answers(candidate, made)["y"], alone)


def test_where_rows_do_not_meddle_many_are_asked_at_once() -> None:
    fake = Fake(-1)
    requests = Requests({"x": np.arange(100, dtype=np.float32)[:, None]})
    assert np.array_equal(answer(fake, requests)["y"], requests.feeds["x"])
    assert fake.rows == [64, 36]
    fake.mixes_batch = True
    assert np.array_equal(answer(fake, requests)["y"], requests.feeds["x"])
    assert fake.rows[2:] == [1] * 100
