"""Danger: a bundle that is worse than float, loses more than was allowed, or hides why another was not taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from edgewise_converter.metrics.score import LARGEST, OutputAgreement, Score
from edgewise_converter.search import judging
from edgewise_converter.search.candidates import Candidate
from edgewise_converter.search.judging import Trial
from edgewise_profiles import catalogue
from hypothesis import given
from hypothesis import strategies as st


def score(drop: float, error: float = 0.01) -> Score:
    output = OutputAgreement(
        output="y", agreement=0.9, basis="top-1", cosine=0.99, relative_error=error, max_error=error
    )
    return Score(name="top1", value=0.9 - drop / 100, float_value=0.9, samples=1000, labelled=True, outputs=(output,))


@st.composite
def trials(draw: Any) -> list[Trial]:
    """At least one float form, and others, some rejected."""
    count = draw(st.integers(1, 8))
    found = []
    for i in range(count):
        is_float = i == 0 or draw(st.booleans())
        refused = "" if i == 0 else draw(st.sampled_from(["", "", "loses too much"]))
        found.append(
            Trial(
                Candidate(f"form {i}", (), "onnxruntime", "onnx", "float32" if is_float else "int8", is_float),
                draw(st.integers(1, 50)),
                score(0.0 if is_float else draw(st.floats(-2, 2))),
                draw(st.one_of(st.floats(0.01, 5), st.integers(1, 3).map(float))),
                refused,
            )
        )
    return found


@given(trials(), st.sampled_from(["latency", "size"]))
def test_the_winner_is_in_and_no_other_is_better_in_the_objective(found: list[Trial], objective: Any) -> None:
    winner, baseline = judging.winner_of(found, objective), judging.baseline_of(found, objective)
    assert winner is not None and baseline is not None
    assert not winner.refused
    inside = [t for t in found if not t.refused]
    if objective == "size":
        assert winner.size_bytes == min(
            t.size_bytes for t in inside if t.candidate.is_float or judging.gains(t, baseline)
        )
        assert winner.size_bytes <= baseline.size_bytes
    else:
        assert winner.latency_ms <= min(t.latency_ms for t in inside) * (1 + judging.TIE) + 1e-12
        assert winner.latency_ms <= baseline.latency_ms * (1 + judging.TIE) + 1e-12


@given(trials(), st.sampled_from(["latency", "size"]))
def test_what_is_no_float_form_wins_only_where_it_is_smaller_or_faster(found: list[Trial], objective: Any) -> None:
    winner, baseline = judging.winner_of(found, objective), judging.baseline_of(found, objective)
    assert winner is not None and baseline is not None
    if not winner.candidate.is_float:
        assert winner.size_bytes < baseline.size_bytes or winner.latency_ms < baseline.latency_ms


@given(trials(), st.sampled_from(["latency", "size"]))
def test_every_form_is_listed_once_with_a_reason_where_it_is_out(found: list[Trial], objective: Any) -> None:
    rows = judging.rows(found, objective)
    assert sorted(r.candidate.name for r in rows) == sorted(t.candidate.name for t in found)
    assert [r.verdict for r in rows].count("winner") == 1
    assert rows[0].verdict == "winner"
    assert all(r.reason for r in rows if r.verdict in ("rejected", "dominated", "winner"))
    assert {r.candidate.name for r in rows if r.reason == "loses too much"} == {
        t.candidate.name for t in found if t.refused
    }


@given(trials())
def test_the_front_holds_what_nothing_dominates_and_dominates_all_else(found: list[Trial]) -> None:
    front = judging.front(found)
    for trial in found:
        beaten = [other for other in front if judging.dominates(other, trial)]
        assert bool(beaten) != (trial in front)


@given(trials(), st.integers(0, 7))
def test_one_more_rejected_form_changes_no_winner(found: list[Trial], place: int) -> None:
    extra = replace(found[0], candidate=replace(found[0].candidate, name="extra"), size_bytes=1, refused="no")
    more = [*found[:place], extra, *found[place:]]
    before, after = judging.winner_of(found, "size"), judging.winner_of(more, "size")
    assert before is after


def test_latencies_within_one_per_cent_go_to_the_smaller_file_then_to_the_simpler_form() -> None:
    def form(name: str, size: int, latency: float, steps: int = 0) -> Trial:
        step: Any = object()
        return Trial(Candidate(name, (step,) * steps, "onnxruntime", "onnx", "float32", True), size, score(0), latency)

    fast, small = form("fast", 100, 1.0), form("small", 90, 1.009)
    assert judging.winner_of([fast, small], "latency") is small
    assert judging.winner_of([fast, replace(small, latency_ms=1.011)], "latency") is fast
    simple = form("simple", 90, 1.005)
    assert judging.winner_of([replace(small, candidate=form("long", 90, 1, 3).candidate), simple], "latency") is simple


def test_without_a_form_that_runs_nothing_wins() -> None:
    gone = Trial(Candidate("a", (), "onnxruntime", "onnx", "float32", True)).out("does not load", "engine")
    assert judging.winner_of([gone], "latency") is None
    assert judging.rows([gone], "latency")[0].verdict == "rejected"


@pytest.mark.parametrize(("drop", "allowed", "out"), [(0.5, 0.5, False), (0.51, 0.5, True), (-3.0, 0.0, False)])
def test_accuracy_is_held_in_points_and_told_in_figures(drop: float, allowed: float, out: bool) -> None:
    reason = judging.accuracy_reason(score(drop), allowed)
    assert bool(reason) == out
    if out:
        assert "0.51 points are lost, 0.5 are allowed" in reason


def test_outputs_that_are_not_finite_are_out_whatever_their_score() -> None:
    assert "NaN" in judging.accuracy_reason(score(-1, error=LARGEST), 100)


def test_a_least_value_binds_whatever_float_reaches() -> None:
    assert "at least 0.95" in judging.least_reason(score(0), 0.95)
    assert judging.least_reason(score(0), 0.9) == judging.least_reason(score(5), None) == ""


def test_size_and_latency_are_held_against_the_profile_where_they_bind() -> None:
    budget = catalogue.load("x86-64").budget
    assert judging.size_reason(budget.model_size_kib * 1024, budget) == ""
    assert "KiB" in judging.size_reason(budget.model_size_kib * 1024 + 1, budget)
    assert "ms" in judging.latency_reason(budget.latency_ms * 1.01, budget)
    assert judging.latency_reason(budget.latency_ms, budget) == ""
