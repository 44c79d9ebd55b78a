"""Danger: steps of a sequence that are judged as if they were apart, or calibrate next to those that are held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgewise_converter.errors import SampleError
from edgewise_converter.requests import Requests
from edgewise_converter.sources import sequences
from edgewise_converter.sources.feeding import Samples, requests_of, split
from edgewise_converter.sources.opening import open_model
from edgewise_converter.sources.reading import Wanted, prepare
from edgewise_converter.sources.sequences import bounded
from edgewise_converter.sources.shape import Shape
from edgewise_protocol.manifest import StatePair, TensorSpec


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, dtype="FP32", shape=shape)


COUNTER = Shape(
    (spec("x", -1, 2), spec("sum", -1, 2)),
    (spec("y", -1, 2), spec("next", -1, 2)),
    1,
    (StatePair(input="sum", output="next"),),
)
WHOLE = Shape((spec("x", 1, 2), spec("sum", 3, 2)), (spec("y", 3, 2), spec("next", 3, 2)), None, COUNTER.state)
PLAIN = Shape((spec("x", -1, 2),), (spec("y", -1, 2),), -1)


def add(feeds: Any) -> Any:
    return {"y": feeds["x"] + feeds["sum"], "next": feeds["x"] + feeds["sum"]}


def values(*shape: int) -> Any:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("shape", "x"), [(COUNTER, values(50, 1, 2)), (WHOLE, values(50, 1, 1, 2))], ids=["b", "w"])
def test_sequences_of_one_request_are_one_sequence_and_it_is_said(shape: Shape, x: Any) -> None:
    found = requests_of({"x": x}, shape, add)
    assert found.lengths == (50,)
    assert np.count_nonzero(found.requests.feeds["sum"].reshape(50, -1).any(1)) == 49
    (note,) = found.notes
    assert "50 sequences of one request" in note and f"'x' of shape {list(x.shape)}" in note


def test_several_sequences_stay_apart() -> None:
    found = requests_of({"x": values(3, 5, 2)}, COUNTER, add)
    assert found.lengths == (5, 5, 5) and found.notes == ()
    assert np.flatnonzero(~found.requests.feeds["sum"].any(1)).tolist() == [0, 5, 10]


def test_a_sequence_is_split_in_the_middle_and_several_between_two() -> None:
    calibration, heldout = split(requests_of({"x": values(9, 2)}, COUNTER, add), in_order=False)
    assert (calibration.lengths, heldout.lengths) == ((4,), (5,))
    whole = requests_of({"x": values(9, 2)}, COUNTER, add).requests
    assert np.array_equal(heldout.requests.feeds["sum"], whole.feeds["sum"][4:])
    calibration, heldout = split(requests_of({"x": values(3, 4, 2)}, COUNTER, add), in_order=False)
    assert (len(calibration.requests), len(heldout.requests)) in {(4, 8), (8, 4)}
    assert not heldout.requests.feeds["sum"][0].any(), "it begins with a sequence"
    uneven = Samples(Requests({"x": values(12, 2)}), None, (8, 1, 1, 2))
    assert [part.lengths for part in split(uneven, in_order=False)] == [(8,), (1, 1, 2)]


def test_requests_that_bring_their_state_are_sequences_as_far_as_it_goes_on() -> None:
    recorded = requests_of({"x": values(3, 40, 2)}, COUNTER, add).requests.feeds
    found = requests_of(recorded, COUNTER, add)
    assert found.lengths == (40, 40, 40) and found.notes == ()
    calls = []

    def counted(feeds: Any) -> Any:
        calls.append(1)
        return add(feeds)

    apart = requests_of({"x": values(90, 2), "sum": 9 * values(90, 2)[::-1]}, COUNTER, counted)
    assert apart.lengths == (1,) * 90 and "is not judged" in apart.notes[0]
    assert len(calls) < 20
    _, heldout = split(apart, in_order=False)
    assert heldout.lengths == (1,) * 45


def test_long_sequences_are_judged_in_pieces_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "MAX_STEPS", 8)
    assert bounded((3, 20, 8)) == (3, 8, 8, 4, 8)
    ready = prepare({"x": values(40, 2)}, None, COUNTER, add, in_order=False)
    assert ready.sequences == (8, 8, 4) and sum(ready.sequences) == len(ready.heldout)
    assert any("anew from the float model's state" in note for note in ready.notes)


def test_the_same_samples_under_two_names_are_one_file() -> None:
    x, y = values(200, 2), np.arange(200) % 3
    ready = prepare({"x": x}, {"x": x.copy(), "y": y}, PLAIN, lambda feeds: feeds, in_order=False)
    assert len(ready.calibration) + len(ready.heldout) == 200
    assert ready.y is not None and len(ready.y) == len(ready.heldout)
    assert "both files hold the same samples" in ready.notes[0] and "evenly spread" in ready.notes[1]


def test_held_out_samples_that_calibrate_too_are_counted() -> None:
    x = values(300, 2)
    ready = prepare({"x": x[:200]}, {"x": x[150:]}, PLAIN, lambda feeds: feeds, in_order=False)
    assert any("50 of 150 held-out samples calibrate" in note for note in ready.notes)
    assert prepare({"x": x[:150]}, {"x": x[149:]}, PLAIN, lambda feeds: feeds, in_order=False).notes == ()


def test_labels_that_are_real_numbers_are_refused_with_what_to_do(even: Path, tmp_path: Path, x: Any) -> None:
    np.savez(tmp_path / "s.npz", x=x, y=x[:, :4])
    with pytest.raises(SampleError, match=r"float32 \[200, 4\].*leave `y` out"):
        open_model(str(even), Wanted(heldout=tmp_path / "s.npz", task="regression"))
