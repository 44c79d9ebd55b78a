"""Danger: a search that takes a worse form, measures twice what it knows, or keeps more in float than it must."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edgewise_converter.cache import Cache
from edgewise_converter.errors import MetricError, PassError
from edgewise_converter.hardware import read_host
from edgewise_converter.passes.registry import PASSES
from edgewise_converter.requests import Requests
from edgewise_converter.search.bench import Bench
from edgewise_converter.search.candidates import Origin, candidates, keeping, layered
from edgewise_converter.search.fewest import Hunt
from edgewise_converter.search.judging import Trial, accuracy_reason
from edgewise_converter.search.mixed import MAX_BASES, Bounds, mend, worth_mending
from edgewise_converter.search.searching import Aim, chosen, judge_one, search
from edgewise_converter.search.sensitivity import Unit, rank
from edgewise_converter.sources.opening import open_model
from edgewise_converter.sources.reading import Wanted
from edgewise_profiles import catalogue

MODELS = os.environ.get("EDGEWISE_MODELS", "")


def stands(*_: Any) -> str:
    return ""


def silent(*_: Any) -> None:
    return None


def bench_of(path: Path, samples: Path, cache: Path | None = None, task: str = "") -> Bench:
    return Bench(open_model(str(path), Wanted(heldout=samples, task=task)), Cache(cache), read_host())


def test_a_small_onnx_file_becomes_a_smaller_one_within_the_budget(even: Path, samples: Path, narrow: Any) -> None:
    profile = narrow("x86-64", ("onnxruntime", "float32"), ("onnxruntime", "int8"), ("onnxruntime", "float16"))
    told: list[tuple[str, float]] = []
    bench = bench_of(even, samples)
    found = search(bench, profile, Aim("size", 1.0), stands, lambda text, share: told.append((text, share)))
    result = found.result
    row = result.winning
    assert found.made is not None and row.size_bytes == len(found.made.artifact.data)
    assert row.size_bytes < result.float_row.size_bytes
    assert row.score.drop <= 1.0
    assert result.metric == "agreement" and not row.score.labelled
    assert row.size_bytes == min(r.size_bytes for r in result.rows if r.verdict != "rejected")
    assert all(r.reason and r.short for r in result.rows if r.verdict == "rejected")
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert any("trying onnxruntime int8" in text for text, _ in told)


def test_outputs_of_the_winner_are_the_score_that_is_told(even: Path, samples: Path, narrow: Any) -> None:
    profile = narrow("x86-64", ("onnxruntime", "int8"), ("onnxruntime", "float32"))
    bench = bench_of(even, samples)
    found = search(bench, profile, Aim("size", 5.0), stands, silent)
    assert found.winner is not None and found.made is not None
    outputs = bench.run(found.winner, found.made, bench.model.heldout)["y"]
    want = bench.model.reference_outputs()["y"]
    error = np.sqrt(np.mean((outputs - want) ** 2)) / np.sqrt(np.mean(want**2))
    assert found.result.winning.score.relative_error == pytest.approx(float(error), rel=1e-4)


def test_a_form_that_does_not_stand_is_told_and_the_next_best_is_taken(even: Path, samples: Path, narrow: Any) -> None:
    profile = narrow("x86-64", ("onnxruntime", "float32"), ("onnxruntime", "int8"))
    asked: list[str] = []

    def no_int8(candidate: Any, made: Any, score: Any) -> str:
        asked.append(candidate.name)
        return "differs there by 3" if candidate.precision == "int8" else ""

    found = search(bench_of(even, samples), profile, Aim("size", 5.0), no_int8, silent)
    assert found.winner is not None and found.winner.is_float
    gone = {r.candidate.name: r for r in found.result.rows if r.short == "unproven"}
    assert asked[0] in gone and "differs there by 3" in gone[asked[0]].reason


def test_without_any_form_within_the_size_budget_there_is_no_winner(even: Path, samples: Path, narrow: Any) -> None:
    profile = narrow("x86-64", ("onnxruntime", "float32"), model_size_kib=1)
    found = search(bench_of(even, samples), profile, Aim(), stands, silent)
    assert found.winner is None and found.result.winner == ""
    assert {r.short for r in found.result.rows} <= {"size", "double"}
    assert all(r.score is None for r in found.result.rows if r.short == "size"), "size is held before accuracy"


def test_a_source_that_answers_no_numbers_is_one_error_before_any_form(
    even: Path, x: Any, tmp_path: Path, narrow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "huge.npz", x=np.where(np.arange(len(x))[:, None] % 2 == 0, x, np.float32(3e38)))
    bench = bench_of(even, tmp_path / "huge.npz")
    monkeypatch.setattr(bench, "make", lambda *_: pytest.fail("a form was made"))
    with pytest.raises(MetricError, match=r"own output 'y' is NaN or infinite on \d+ of the \d+ held-out samples"):
        search(bench, narrow("x86-64", ("onnxruntime", "float32")), Aim(), stands, silent)


@pytest.mark.parametrize("off", [0, 1])
def test_a_source_that_the_labels_do_not_know_is_said(
    even: Path, samples: Path, x: Any, tmp_path: Path, narrow: Any, off: int
) -> None:
    answers = bench_of(even, samples).model.source_answers(Requests({"x": x}))["y"]
    np.savez(tmp_path / "labelled.npz", x=x, y=(answers.argmax(1) + off) % 4)
    found = search(bench_of(even, tmp_path / "labelled.npz"), narrow("x86-64"), Aim(form="float32"), stands, silent)
    said = [note for note in found.result.notes if "always naming the most frequent class" in note]
    assert len(said) == off and found.result.winning.score.float_value == 1 - off


def test_a_profile_that_has_no_form_for_the_file_says_which_it_has(even: Path, samples: Path, narrow: Any) -> None:
    with pytest.raises(PassError, match=r"tflite-int8.*made of a run, .* or a \.tflite file"):
        search(bench_of(even, samples), narrow("raspberry-pi-zero-2-w"), Aim(), stands, silent)


def test_what_was_made_and_measured_is_not_made_again(
    even: Path, samples: Path, narrow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = narrow("x86-64", ("onnxruntime", "float32"), ("onnxruntime", "int8"))
    first = search(bench_of(even, samples, tmp_path / "c"), profile, Aim("size", 5.0), stands, silent)
    again = bench_of(even, samples, tmp_path / "c")
    for name in ("run", "_time", "open"):
        monkeypatch.setattr(again, name, lambda *_: pytest.fail("measured again"))
    second = search(again, profile, Aim("size", 5.0), stands, silent)
    assert second.result.rows == first.result.rows
    assert second.made is not None and first.made is not None
    assert second.made.artifact == first.made.artifact


def test_mixed_precision_keeps_the_fewest_layers_that_a_brute_force_finds(
    uneven: Path, samples: Path, narrow: Any
) -> None:
    profile = narrow("x86-64-vnni", ("onnxruntime", "int8"), ("onnxruntime", "float32"))
    bench, budget = bench_of(uneven, samples), 1.0
    full = next(c for c in candidates(profile, Origin("onnx")) if c.name == "onnxruntime int8, not chained")
    score = bench.score(full, bench.make(full))
    assert score.drop > 10, "the model is built to need float"
    trial = Trial(full, 1, score, None, accuracy_reason(score, budget), "accuracy")
    assert worth_mending([trial]) == ((trial,),)
    told: list[float] = []
    mixed, *others = mend(bench, [trial], Bounds(budget), 24, lambda _text, share: told.append(share))
    assert told == sorted(told) and told[-1] <= 1
    place = layered(full)
    assert place is not None
    kept = mixed.candidate.steps[place].config.keep_float
    layers = [damage.layer for damage in mixed.layers]
    enough = [
        size
        for size in range(1, len(layers))
        for chosen in combinations(sorted(layers), size)
        if bench.score(form := keeping(full, chosen), bench.make(form)).drop <= budget
    ]
    assert len(kept) == min(enough) < len(layers)
    assert len({m.candidate.name for m in (mixed, *others)}) == 1 + len(others)
    for form in (mixed, *others):
        assert len(form.candidate.steps[place].config.keep_float) == len(kept)
        assert bench.score(form.candidate, bench.make(form.candidate)).drop <= budget
    assert {d.layer for d in mixed.layers if d.kept_float} == set(kept)


def test_where_the_largest_error_moves_no_class_the_metric_finds_the_smaller_set(
    misleading: Path, samples: Path, narrow: Any
) -> None:
    profile = narrow("x86-64-vnni", ("onnxruntime", "int8"), ("onnxruntime", "float32"))
    bench, budget, trials = bench_of(misleading, samples, task="classification"), 5.0, 4
    full = next(c for c in candidates(profile, Origin("onnx")) if c.name == "onnxruntime int8, not chained")
    score = bench.score(full, bench.make(full))
    trial = Trial(full, 1, score, None, accuracy_reason(score, budget), "accuracy")
    assert trial.refused, "the model is built to need float"
    place = layered(full)
    assert place is not None
    layers = PASSES[full.steps[place].name].layers()(bench.before_last(full, place))
    by_metric = rank(bench, full, layers, silent)

    def kept_by(units: list[Unit]) -> int | None:
        tried: list[Any] = []

        def excess(kept: tuple[str, ...]) -> float:
            tried.append(kept)
            return bench.score(form := keeping(full, kept), bench.make(form)).drop - budget

        hunt = Hunt(units, excess, lambda: trials - len(tried))
        hunt.bisect()
        hunt.refine()
        return hunt.count

    by_error = sorted(by_metric, key=lambda unit: -unit.damage)
    assert by_error[0] != by_metric[0] and by_metric[0].layers == ("layer_b",)
    assert kept_by(by_metric) == 1
    assert (kept_by(by_error) or len(layers)) > 1
    mixed, *_ = mend(bench, [trial], Bounds(budget), trials, silent)
    assert mixed.candidate.steps[place].config.keep_float == ("layer_b",)


def test_a_mixed_form_begins_from_the_base_that_needs_the_fewest(uneven: Path, samples: Path, narrow: Any) -> None:
    """The least lossy form as it is need not be the one that mends best; all within one bound on trials."""
    profile = narrow("x86-64-vnni", ("onnxruntime", "int8"), ("onnxruntime", "float32"))
    bench, budget = bench_of(uneven, samples), 1.0
    trials = [judge_one(bench, c, profile, Aim("size", budget), {}) for c in candidates(profile, Origin("onnx"))]
    (bases,) = worth_mending(trials)
    assert 1 < len(bases) <= MAX_BASES
    assert [b.loss for b in bases] == sorted(b.loss for b in bases)

    def kept(mixed: Any) -> int:
        return sum(d.kept_float for d in mixed.layers)

    alone = [kept(found[0]) for b in bases if (found := mend(bench, [b], Bounds(budget), 24, silent))]
    together = mend(bench, bases, Bounds(budget), 24, silent)
    assert together and kept(together[0]) == min(alone)


def test_a_search_mends_what_loses_too_much(uneven: Path, samples: Path, narrow: Any) -> None:
    profile = narrow("x86-64-vnni", ("onnxruntime", "int8"), ("onnxruntime", "float32"))
    found = search(bench_of(uneven, samples), profile, Aim("size", 1.0), stands, silent)
    assert found.winner is not None
    mixed = [r for r in found.result.rows if "in float" in r.candidate.name and r.verdict != "rejected"]
    assert mixed and all(r.score.drop <= 1.0 for r in mixed)
    assert found.layers


@pytest.mark.slow
def test_the_digits_run_becomes_a_smaller_and_faster_bundle_form(digits_run: Path, narrow: Any) -> None:
    bench = Bench(open_model(str(digits_run)), Cache(None), read_host())
    found = search(bench, narrow("x86-64"), Aim("latency", 0.5), stands, silent)
    result = found.result
    engines = {r.candidate.engine for r in result.rows}
    assert engines == {"onnxruntime", "litert"}
    assert result.winning.score.drop <= 0.5
    assert result.winning.latency_ms <= 1.03 * min(r.latency_ms for r in result.rows if r.verdict != "rejected")


@pytest.mark.slow
@pytest.mark.skipif(not MODELS, reason="EDGEWISE_MODELS names no folder of models")
def test_a_finished_tflite_file_is_narrowed(tmp_path: Path, narrow: Any) -> None:
    path = Path(MODELS) / "mlperf_tiny" / "ad01_fp32.tflite"
    rng = np.random.default_rng(2)
    np.savez(tmp_path / "s.npz", x=(rng.normal(size=(64, 640)) * 5 - 20).astype(np.float32))
    bench = bench_of(path, tmp_path / "s.npz", task="embedding")
    found = search(bench, narrow("raspberry-pi-4-64"), Aim("size", 5.0), stands, silent)
    assert found.winner is not None
    assert found.result.winning.size_bytes < found.result.float_row.size_bytes / 2


def test_mixed_precision_is_looked_for_as_far_as_the_least_metric_asks(
    uneven: Path, samples: Path, narrow: Any
) -> None:
    """A wide budget of points beside a narrow least value: the narrow one counts."""
    profile = narrow("x86-64-vnni", ("onnxruntime", "int8"), ("onnxruntime", "float32"))
    bench = bench_of(uneven, samples)
    found = search(bench, profile, Aim("size", 60.0, min_metric=0.99), stands, silent)
    mixed = [row for row in found.result.rows if "in float" in row.candidate.name and row.verdict != "rejected"]
    assert mixed and all(row.score is not None and row.score.value >= 0.99 for row in mixed)


def test_a_form_is_named_by_its_precision_in_whichever_format_the_model_can_have(even: Path, samples: Path) -> None:
    """The board's first int8 form is a TFLite file, which no ONNX file becomes."""
    bench = bench_of(even, samples)
    board = catalogue.load("raspberry-pi-4-64")
    assert board.target("int8").engine == "litert"
    assert chosen(bench.model, board, "int8").name == "onnxruntime int8"
    assert chosen(bench.model, board, "default").engine == "onnxruntime"
    with pytest.raises(PassError, match=r"tflite-float16 of this model; raspberry-pi-4-64 can have .*onnx-int8"):
        chosen(bench.model, board, "float16")


def test_a_form_that_was_asked_for_is_not_held_against_a_float_form_that_was_not_made(
    even: Path, samples: Path, narrow: Any
) -> None:
    found = search(bench_of(even, samples), narrow("x86-64"), Aim(form="int8"), stands, silent)
    (row,) = found.result.rows
    assert row.verdict == "winner" and "no float form is among it" in row.reason


def test_a_latency_budget_that_does_not_bind_here_is_not_passed_over_in_silence(
    even: Path, samples: Path, narrow: Any
) -> None:
    board = narrow("raspberry-pi-5", ("onnxruntime", "float32"))
    tight = msgspec.structs.replace(board, budget=msgspec.structs.replace(board.budget, latency_ms=1e-5))
    found = search(bench_of(even, samples), tight, Aim(), stands, silent)
    assert found.winner is not None
    assert any("binds on its own hardware alone" in note for note in found.result.notes)
