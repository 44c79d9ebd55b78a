"""Danger: a summary that loses counts, depends on the order of merging, or breaks on NaN."""

from __future__ import annotations

import base64

import msgspec
import numpy as np
import pytest
from edgewise_protocol.errors import MalformedError, SketchError
from edgewise_protocol.features import CLASS_FEATURE, build_baseline, input_features, output_features, sketch_window
from edgewise_protocol.sketches import (
    KLL_RANK_ERROR,
    FeatureSketch,
    decode_baseline,
    encode_baseline,
    load_kll,
    merge,
    quantile_edges,
    sketch_categorical,
    sketch_numeric,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

EDGES = (-1.0, 0.0, 2.5)
arrays = hnp.arrays(np.float64, st.integers(0, 30), elements=st.floats(width=64))


@given(arrays, arrays)
def test_a_merge_counts_what_the_whole_would(a: np.ndarray, b: np.ndarray) -> None:
    merged = merge(sketch_numeric(a, EDGES), sketch_numeric(b, EDGES))
    whole = sketch_numeric(np.concatenate([a, b]), EDGES)
    assert (merged.counts, merged.not_finite) == (whole.counts, whole.not_finite)
    assert merged.total + merged.not_finite == a.size + b.size
    if whole.total:
        assert (merged.minimum, merged.maximum) == (whole.minimum, whole.maximum)


@given(hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-10, 10)))
def test_every_value_falls_into_its_bin(values: np.ndarray) -> None:
    edges = quantile_edges(values)
    found = sketch_numeric(values, edges)
    for i, count in enumerate(found.counts):
        low = edges[i - 1] if i else -np.inf
        high = edges[i] if i < len(edges) else np.inf
        assert count == int(((values >= low) & (values < high)).sum())


def test_categories_outside_are_told() -> None:
    found = sketch_categorical(np.array([0, 1, 1, 7, -1]), 3)
    assert (found.counts, found.not_finite) == ((1, 2, 0), 2)


def test_what_does_not_belong_together_does_not_merge() -> None:
    a = sketch_numeric(np.zeros(3), EDGES)
    with pytest.raises(SketchError):
        merge(a, sketch_numeric(np.zeros(3), (0.0, 1.0)))
    with pytest.raises(SketchError):
        merge(a, sketch_categorical(np.zeros(3, int), 4))


def test_merged_quantiles_keep_their_rank_error() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(i % 3, 1, 2_000) for i in range(10)]
    merged = sketch_numeric(parts[0], EDGES, kll=True)
    for part in parts[1:]:
        merged = merge(merged, sketch_numeric(part, EDGES, kll=True))
    everything, sketch = np.concatenate(parts), load_kll(merged.kll)
    for q in (0.05, 0.5, 0.95):
        assert abs((everything < sketch.get_quantile(q)).mean() - q) < 2 * KLL_RANK_ERROR


@pytest.mark.parametrize(
    "raw",
    [
        {"kind": "numeric", "counts": [1, 2], "edges": [0.0, 1.0]},
        {"kind": "numeric", "counts": [1, 2, 3], "edges": [1.0, 0.0]},
        {"kind": "numeric", "counts": [1, -2], "edges": [0.0]},
        {"kind": "other", "counts": [1]},
    ],
)
def test_a_sketch_that_contradicts_itself_is_refused(raw: dict[str, object]) -> None:
    with pytest.raises(MalformedError):
        decode_baseline(msgspec.json.encode({"spec_version": "1.0", "samples": 1, "features": {"f": raw}}))
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(raw, FeatureSketch)


def test_not_a_kll_sketch_is_our_error() -> None:
    for text in ("AAAA", "!!", "AgEPAA=="):
        with pytest.raises(SketchError):
            load_kll(text)


def test_a_baseline_reads_back_and_a_window_uses_its_edges() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.random((200, 1, 8, 8)), rng.normal(size=(200, 10))
    baseline = build_baseline(x, y, "classification")
    assert decode_baseline(encode_baseline(baseline)) == baseline
    window = sketch_window({**input_features(x[:40]), **output_features(y[:40], "classification")}, baseline)
    assert set(window) == set(baseline.features)
    assert all(s.total == 40 for s in window.values())
    assert window["input.mean"].edges == baseline.features["input.mean"].edges
    assert window[CLASS_FEATURE].kind == "categorical"


@given(
    hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=6), elements=st.floats(width=32)
    )
)
def test_features_of_any_input_have_one_value_a_sample(x: np.ndarray) -> None:
    for values in input_features(x).values():
        assert values.shape == (x.shape[0],)
    for values in output_features(x, "classification").values():
        assert values.shape == (x.shape[0],)


def kll_of(values: int) -> bytes:
    from datasketches import kll_floats_sketch

    sketch = kll_floats_sketch(200)
    sketch.update(np.linspace(-1, 1, values, dtype=np.float32))
    return bytes(sketch.serialize())


@pytest.mark.parametrize("values", [1, 2, 199, 200, 201, 1_000, 100_000])
def test_a_kll_sketch_is_taken(values: int) -> None:
    assert load_kll(base64.b64encode(kll_of(values)).decode()).n == values


@pytest.mark.parametrize(
    ("at", "forged"),
    [
        (0, b"\x02"),  # another preamble
        (3, b"\x01"),  # empty
        (4, b"\xff\xff"),  # a larger k
        (8, b"\xff" * 8),  # more items than there are
        (18, b"\xff"),  # more levels
        (20, b"\xff\xff\xff\x7f"),  # a level that begins beyond the end: read, it ends the process
        (24, b"\x00\x00\x00\x00"),  # levels out of order
        (40, b"\x00\x00\xc0\x7f"),  # NaN
    ],
)
def test_a_forged_kll_sketch_never_reaches_the_native_reader(at: int, forged: bytes) -> None:
    data = bytearray(kll_of(1_000))
    data[at : at + len(forged)] = forged
    with pytest.raises(SketchError):
        load_kll(base64.b64encode(data).decode())


@given(st.data())
def test_a_damaged_kll_sketch_is_refused_or_can_be_asked(data: st.DataObject) -> None:
    raw = bytearray(kll_of(data.draw(st.sampled_from([1, 50, 1_000]))))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, min(40, len(raw) - 1)))] = data.draw(st.integers(0, 255))
    try:
        sketch = load_kll(base64.b64encode(raw).decode())
    except SketchError:
        return
    assert np.isfinite(np.asarray(sketch.get_quantiles([0.0, 0.5, 1.0]))).all()


def test_a_count_that_no_float_holds_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"kind":"categorical","counts":[1' + b"0" * 400 + b"]}", type=FeatureSketch)
