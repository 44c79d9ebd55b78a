"""Danger: alarms on data like the training data, so that nobody looks any more; or silence on corrupted data.

Simulated with real digits: a classifier, its baseline on training images, windows of held-out ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from edgewise_protocol.features import build_baseline, input_features, output_features, sketch_window
from edgewise_protocol.sketches import Baseline, FeatureSketch, merge, sketch_categorical, sketch_numeric
from edgewise_server.drift.distances import jensen_shannon, ks_binned, ks_kll, psi
from edgewise_server.drift.judge import WindowScore, judge
from edgewise_server.drift.thresholds import DriftSettings, chi_squared_quantile, thresholds
from edgewise_server.drift.tracking import Track, advance
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

SETTINGS = DriftSettings()
Images = NDArray[np.float32]


@dataclass(frozen=True)
class Served:
    """A model on a device: held-out images, and how a window of any images is sketched."""

    images: Images
    baseline: Baseline
    sketch: Callable[..., dict[str, FeatureSketch]]

    def window(self, size: int, random: np.random.Generator, corrupt: Callable[..., Images] | None = None) -> Any:
        images = self.images[random.choice(len(self.images), size)]
        return self.sketch(images if corrupt is None else corrupt(images, random))


@pytest.fixture(scope="module")
def served() -> Served:
    digits = load_digits()
    x, y = digits.images.reshape(-1, 1, 8, 8).astype(np.float32), digits.target
    train, held_out, labels, _ = train_test_split(x, y, test_size=0.3, random_state=0, stratify=y)
    model = MLPClassifier((64,), max_iter=60, random_state=0, early_stopping=True)
    model.fit(train.reshape(len(train), -1) / 16, labels)

    def logits(images: Images) -> NDArray[np.float64]:
        hidden = np.maximum(images.reshape(len(images), -1) / 16 @ model.coefs_[0] + model.intercepts_[0], 0)
        return np.asarray(hidden @ model.coefs_[1] + model.intercepts_[1])

    baseline = build_baseline(train, logits(train), "classification")

    def sketch(images: Images, *, kll: bool = False) -> dict[str, FeatureSketch]:
        values = {**input_features(images), **output_features(logits(images), "classification")}
        return sketch_window(values, baseline, kll=kll)

    return Served(held_out, baseline, sketch)


def noise(images: Images, random: np.random.Generator) -> Images:
    return np.clip(images + random.normal(0, 4, images.shape), 0, 16).astype(np.float32)


def invert(images: Images, _random: np.random.Generator) -> Images:
    return 16 - images


def dim(images: Images, _random: np.random.Generator) -> Images:
    return images / 2


def shifted(images: Images, _random: np.random.Generator) -> Images:
    return np.roll(images, 2, axis=-1)


@pytest.mark.parametrize("size", [100, 200, 300])
def test_windows_like_the_training_data_do_not_alarm(served: Served, size: int) -> None:
    """400 windows a size: none drifts (95 % bound on the rate: 0.75 % a window; an alert needs two in a row)."""
    random = np.random.default_rng(size)
    scores = [judge(served.window(size, random), served.baseline, SETTINGS) for _ in range(400)]
    assert sum(score.drifted for score in scores) == 0
    assert sum(score.calm for score in scores) > 0.8 * len(scores)


@pytest.mark.parametrize("corrupt", [noise, invert, dim, shifted])
@pytest.mark.parametrize("size", [100, 300])
def test_corrupted_images_drift_in_every_window(served: Served, corrupt: Any, size: int) -> None:
    random = np.random.default_rng(1)
    scores = [judge(served.window(size, random, corrupt), served.baseline, SETTINGS) for _ in range(30)]
    assert all(score.drifted for score in scores)


def test_a_fleet_of_devices_opens_no_false_alert_and_finds_the_bad_camera(served: Served) -> None:
    """20 devices with 20 windows each: no alert; each corruption opens one within two windows, and it closes."""
    random = np.random.default_rng(5)
    opened = 0
    for _ in range(20):
        track = Track()
        for _ in range(20):
            track, change = advance(track, judge(served.window(150, random), served.baseline, SETTINGS), SETTINGS)
            opened += change == "open"
    assert opened == 0
    for corrupt in (noise, invert, dim, shifted):
        track, changes = Track(), []
        for corruption in [corrupt] * 2 + [None] * 6:
            score = judge(served.window(150, random, corruption), served.baseline, SETTINGS)
            track, change = advance(track, score, SETTINGS)
            changes.append(change)
        assert "open" in changes[:2] and "close" in changes[4:] and not track.open


def test_small_windows_are_not_judged(served: Served) -> None:
    score = judge(served.window(29, np.random.default_rng(0), invert), served.baseline, SETTINGS)
    assert not score.judged and not score.drifted
    assert advance(Track(1, 0, False), score, SETTINGS) == (Track(1, 0, False), "none")


def test_small_windows_that_are_judged_do_not_alarm_either(served: Served) -> None:
    random = np.random.default_rng(3)
    scores = [judge(served.window(30, random), served.baseline, SETTINGS) for _ in range(300)]
    assert sum(score.drifted for score in scores) == 0


def test_the_sketches_error_enters_the_threshold(served: Served) -> None:
    exact = judge(served.window(200, np.random.default_rng(0)), served.baseline, SETTINGS)
    images = served.images[:200]
    approximate = judge(served.sketch(images, kll=True), served.baseline, SETTINGS)
    by_name = {score.feature: score for score in exact.features}
    for score in approximate.features:
        if score.ks_threshold is not None:
            assert score.ks_threshold == pytest.approx(by_name[score.feature].ks_threshold + 2 * 0.0133)
    assert not approximate.drifted


def test_kll_and_bins_find_the_same_distance() -> None:
    random = np.random.default_rng(0)
    edges = tuple(np.linspace(-2, 2, 41))
    a = sketch_numeric(random.normal(0, 1, 5000), edges, kll=True)
    b = sketch_numeric(random.normal(0.5, 1, 5000), edges, kll=True)
    binned = ks_binned(np.array(a.counts, float), np.array(b.counts, float))
    assert ks_kll(a, b) == pytest.approx(binned, abs=0.03)
    assert binned == pytest.approx(0.197, abs=0.03)  # 2 Phi(1/4) - 1


def test_not_a_number_is_severe_drift(served: Served) -> None:
    window = dict(served.window(200, np.random.default_rng(0)))
    broken = sketch_numeric(np.array([np.nan] * 40 + [1.0] * 160), served.baseline.features["input.mean"].edges)
    score = judge(window | {"input.mean": broken}, served.baseline, SETTINGS)
    assert score.severe and score.drifted_features == ("input.mean",)


def test_windows_over_other_edges_are_not_compared(served: Served) -> None:
    window = {"input.mean": sketch_numeric(np.full(200, 99.0), (0.0, 1.0))}
    assert not judge(window, served.baseline, SETTINGS).judged


def test_one_feature_that_is_off_in_one_measure_only_is_not_believed() -> None:
    reference = sketch_categorical(np.repeat(np.arange(10), 100), 10)
    baseline = Baseline(samples=1000, features={"output.class": reference})
    skewed = sketch_categorical(np.repeat(np.arange(10), [18, 12, 10, 10, 10, 10, 10, 8, 6, 6]), 10)
    score = judge({"output.class": skewed}, baseline, SETTINGS)
    assert score.judged and not score.drifted
    gone = sketch_categorical(np.zeros(100, dtype=int), 10)
    assert judge({"output.class": gone}, baseline, SETTINGS).severe


def test_a_change_that_the_cumulative_distribution_hides_is_found_by_the_bins() -> None:
    edges = tuple(float(n) for n in range(1, 10))
    baseline = Baseline(samples=1000, features={"x": sketch_numeric(np.repeat(np.arange(10) + 0.5, 100), edges)})
    comb = sketch_numeric(np.repeat(np.arange(10) + 0.5, [58, 2] * 5), edges)
    (score,) = judge({"x": comb}, baseline, SETTINGS).features
    assert score.ks is not None and score.ks_threshold is not None and score.ks < score.ks_threshold
    assert score.drifted


def test_merged_windows_of_many_devices_find_what_each_alone_does_not(served: Served) -> None:
    def faint(images: Images, random: np.random.Generator) -> Images:
        return np.clip(images + random.normal(0, 1.5, images.shape), 0, 16).astype(np.float32)

    random = np.random.default_rng(7)
    windows = [served.window(30, random, faint) for _ in range(20)]
    assert sum(judge(window, served.baseline, SETTINGS).drifted for window in windows) <= 2
    total = windows[0]
    for window in windows[1:]:
        total = {name: merge(total[name], window[name]) for name in total}
    assert judge(total, served.baseline, SETTINGS).drifted


def window_score(*, drifted: bool = False, severe: bool = False, calm: bool = False) -> WindowScore:
    return WindowScore(judged=True, drifted=drifted, severe=severe, calm=calm)


def test_an_alert_opens_after_two_windows_and_closes_after_three_calm_ones() -> None:
    bad, calm, between = window_score(drifted=True), window_score(calm=True), window_score()
    sequence = [bad, between, bad, bad, bad, calm, calm, between, calm, calm, calm, calm]
    expected = ["none", "none", "none", "open", "none", "none", "none", "none", "none", "none", "close", "none"]
    track, changes = Track(), []
    for score in sequence:
        track, change = advance(track, score, SETTINGS)
        changes.append(change)
    assert changes == expected
    assert advance(Track(), window_score(drifted=True, severe=True), SETTINGS)[1] == "open"
    assert advance(Track(1, 0, True), window_score(drifted=True, severe=True), SETTINGS)[1] == "worsen"


@pytest.mark.parametrize("k", [1, 2, 5, 9, 40])
def test_the_quantile_is_scipys(k: int) -> None:
    assert chi_squared_quantile(1 - 1e-4, k) == pytest.approx(chi2.ppf(1 - 1e-4, k), rel=0.08)


def test_thresholds_fall_with_samples_to_the_effect_size() -> None:
    values = [
        thresholds(SETTINGS, samples=n, reference=2000, bins=10, output=False, approximate=False)
        for n in (30, 100, 1000, 100_000)
    ]
    assert [v.psi for v in values] == sorted((v.psi for v in values), reverse=True)
    assert values[-1].psi == SETTINGS.psi_effect and values[-1].ks == SETTINGS.ks_effect


COUNTS = st.lists(st.integers(0, 10_000), min_size=2, max_size=30).filter(lambda c: sum(c) > 0)


@given(COUNTS, st.randoms())
def test_distances_are_zero_for_equals_symmetric_and_bounded(counts: list[int], random: Any) -> None:
    other = counts[:]
    random.shuffle(other)
    a, b = np.array(counts, float), np.array(other, float)
    for distance in (psi, jensen_shannon, ks_binned):
        assert distance(a, a) == pytest.approx(0, abs=1e-12)
        assert distance(a, b) == pytest.approx(distance(b, a))
        assert distance(a, b) >= -1e-12
    assert jensen_shannon(a, b) <= np.log(2) + 1e-12
    assert ks_binned(a, b) <= 1 + 1e-12
