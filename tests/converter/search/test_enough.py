"""Danger: a loss that is told as fact where a few samples made it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from edgewise_converter.cache import Cache
from edgewise_converter.hardware import read_host
from edgewise_converter.metrics.score import OutputAgreement, Score
from edgewise_converter.search.bench import Bench
from edgewise_converter.search.searching import Aim, search
from edgewise_converter.sources.enough import doubts
from edgewise_converter.sources.opening import open_model
from edgewise_converter.sources.reading import Wanted


def score(name: str, samples: int, *, drop: float = 0.0, agreement: float = 1.0, basis: str = "top-1") -> Score:
    output = OutputAgreement(
        output="y", agreement=agreement, basis=basis, cosine=1.0, relative_error=0.0, max_error=0.0
    )
    labelled = name != "agreement"
    value = 0.9 - drop / 100
    return Score(name=name, value=value, float_value=0.9, samples=samples, labelled=labelled, outputs=(output,))


def model(y: Any = None) -> Any:
    return SimpleNamespace(y=y)


@pytest.mark.parametrize(
    ("y", "found", "said"),
    [
        (np.zeros(120, int), score("top1", 120), "only 120 labels judge the forms: a single one weighs 0.83 points"),
        (None, score("agreement", 120), "only 120 samples judge"),
        (np.arange(8) % 2, score("auc-reconstruction", 800), "only 4 labels of the rarer class, of 8 labels of 800"),
        (np.arange(1000) < 2, score("auc-score", 1000), "only 2 labels of the rarer class, of 1000 labels, judge"),
        (None, score("agreement", 99, basis="r-squared"), "only 99 samples"),
        (np.zeros(400, int), score("top1", 400, drop=0.25, agreement=0.97), "12 of 400 samples .* uncertain by 0.87"),
    ],
    ids=["labels", "samples", "windows", "rare", "r-squared", "error"],
)
def test_what_too_little_decides_is_said_in_points(y: Any, found: Score, said: str) -> None:
    (note,) = doubts(model(y), found, 0.5)
    assert re.search(said, note)


@pytest.mark.parametrize(
    ("y", "found", "allowed"),
    [
        (np.zeros(1000, int), score("top1", 1000, drop=0.1, agreement=0.99), 0.5),
        (np.zeros(120, int), score("top1", 120), 1.0),
        (np.arange(1000) % 2, score("auc-score", 1000), 0.5),
        (None, score("agreement", 100, basis="r-squared"), 0.01),
        (None, score("agreement", 10), 0.0),
        (None, None, 0.5),
    ],
)
def test_where_there_is_enough_nothing_is_said(y: Any, found: Score | None, allowed: float) -> None:
    assert doubts(model(y), found, allowed) == ()


def test_a_search_says_that_its_samples_are_few(even: Path, x: Any, tmp_path: Path, narrow: Any) -> None:
    np.savez(tmp_path / "s.npz", x=x[:60], y=np.arange(60) % 4)
    bench = Bench(open_model(str(even), Wanted(heldout=tmp_path / "s.npz")), Cache(None), read_host())
    profile = narrow("x86-64", ("onnxruntime", "float32"))
    found = search(bench, profile, Aim("size", 0.5), lambda *_: "", lambda *_: None)
    assert "only 30 labels judge" in found.result.notes[-1]
    lost = search(bench, profile, Aim("size", 0.5), lambda *_: "differs there", lambda *_: None)
    assert lost.winner is None and lost.result.notes == found.result.notes
