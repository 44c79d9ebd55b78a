"""Danger: layers in float that need not be, or a search for them without an end."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from edgewise_converter.search.fewest import Excess, Hunt
from edgewise_converter.search.sensitivity import Unit, metric_cost, relative_error, units_of


def ranked(*damages: float) -> list[Unit]:
    return [Unit((f"layer{i}",), damage, damage / 100) for i, damage in enumerate(damages)]


def sets(units: list[Unit], excess: Excess, trials: int) -> tuple[tuple[str, ...], ...]:
    asked: list[tuple[str, ...]] = []

    def counted(kept: tuple[str, ...]) -> float:
        asked.append(kept)
        return excess(kept)

    hunt = Hunt(units, counted, lambda: trials - len(asked))
    hunt.bisect()
    hunt.refine()
    assert len(asked) == len(set(asked)) <= trials
    return hunt.sets(4)


def fewest(units: list[Unit], excess: Excess, trials: int) -> tuple[str, ...] | None:
    return next(iter(sets(units, excess, trials)), None)


@pytest.mark.parametrize(
    "needed",
    [{0}, {1}, {0, 1}, {0, 2}, {1, 3}, {0, 1, 2}],
    ids=str,
)
def test_the_smallest_set_that_holds_is_found_even_where_the_ranking_errs(needed: set[int]) -> None:
    asked: list[tuple[str, ...]] = []

    def excess(kept: tuple[str, ...]) -> float:
        asked.append(kept)
        return -0.1 if needed <= {int(name[5:]) for name in kept} else 1.0

    found = fewest(ranked(*range(10, 0, -1)), excess, 24)
    assert found == tuple(f"layer{i}" for i in sorted(needed))
    assert len(asked) == len(set(asked)) <= 24


def test_no_set_of_fewer_layers_holds() -> None:
    """Damage that adds up: the answer is compared with every subset."""
    damages = [9.0, 7.0, 4.0, 3.0, 2.0, 1.0]

    def excess(kept: tuple[str, ...]) -> float:
        return sum(d for i, d in enumerate(damages) if f"layer{i}" not in kept) - 6.5

    found = fewest(ranked(*damages), excess, 40)
    sizes = [
        size
        for size in range(7)
        for chosen in combinations(range(6), size)
        if excess(tuple(f"layer{i}" for i in chosen)) <= 0
    ]
    assert found is not None and len(found) == min(sizes)


def test_equal_inputs_give_equal_results_and_trials_are_bounded() -> None:
    calls = 0

    def excess(kept: tuple[str, ...]) -> float:
        nonlocal calls
        calls += 1
        return 0.0 if len(kept) >= 5 else float(5 - len(kept))

    units = ranked(*range(30, 0, -1))
    first = fewest(units, excess, 12)
    assert calls <= 12
    assert first == fewest(units, excess, 12)
    assert first is not None and len(first) == 5


def test_where_no_set_holds_there_is_none() -> None:
    assert fewest(ranked(3, 2, 1), lambda kept: 1.0, 24) is None


def test_two_layers_give_way_to_one_that_the_ranking_put_below_them() -> None:
    """No member alone can be left out, so that a descent ends; a swap finds what does both their work."""
    work = {0: 3.0, 1: 3.0, 2: 3.0, 3: 0.5, 4: 6.0}

    def excess(kept: tuple[str, ...]) -> float:
        return 8.9 - sum(work[int(name[5:])] for name in kept)

    assert fewest(ranked(9, 8, 7, 2, 1), excess, 24) in {(f"layer{i}", "layer4") for i in range(3)}


def test_sets_of_equally_few_layers_are_handed_on_together() -> None:
    """Which of them is the fastest is measured, not guessed."""
    holding = {("layer0", "layer1"), ("layer0", "layer2"), ("layer1", "layer3")}
    found = sets(ranked(*range(8, 0, -1)), lambda kept: -1.0 if any(set(h) <= set(kept) for h in holding) else 1.0, 40)
    assert 1 < len(found) == len(set(found)) and set(found) <= holding


def test_a_base_that_cannot_beat_another_costs_one_trial() -> None:
    asked: list[tuple[str, ...]] = []

    def excess(kept: tuple[str, ...]) -> float:
        asked.append(kept)
        return 5.0 - len(kept)

    hunt = Hunt(ranked(*range(20, 0, -1)), excess, lambda: 24)
    hunt.bisect(below=5)
    assert hunt.count is None and len(asked) == 1
    hunt.bisect(below=9)
    assert hunt.count == 5


def test_an_error_that_all_classes_share_costs_nothing_and_one_that_changes_a_class_does() -> None:
    want = {"y": np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]], np.float32)}
    shared = {"y": want["y"] + 50}
    small = {"y": want["y"] + np.array([[-0.6, 0.6, 0.0], [0.0, 0.0, 0.0]], np.float32)}
    near = {"y": want["y"] + np.array([[-0.3, 0.2, 0.0], [0.0, 0.0, 0.0]], np.float32)}
    assert relative_error(shared, want) > 10 * relative_error(small, want)
    assert metric_cost(shared, want, "classification") == 0
    assert metric_cost(small, want, "classification") == pytest.approx(0.5)
    assert metric_cost(near, want, "classification") == pytest.approx(0.5 * 0.5**2)
    assert metric_cost({"y": np.full((2, 3), np.nan)}, want, "classification") == 1
    spread = np.mean((want["y"] - want["y"].mean()) ** 2)
    assert metric_cost({"y": want["y"] + 0.1}, want, "other") == pytest.approx(0.01 / spread)


def test_the_cost_of_a_lost_column_is_not_hidden_by_another() -> None:
    want = np.random.default_rng(1).normal(size=(64, 2)) * [1.0, 2000.0] + [0.0, 5000.0]
    lost = want.copy()
    lost[:, 0] = want[:, 0].mean()
    assert metric_cost({"y": lost}, {"y": want}, "other") > 0.2
    assert relative_error({"y": lost}, {"y": want}) < 1e-3


def test_many_layers_become_runs_of_neighbours_and_none_is_lost() -> None:
    layers = tuple(f"l{i}" for i in range(101))
    units = units_of(layers, 40)
    assert len(units) <= 40
    assert tuple(name for unit in units for name in unit) == layers


def test_damage_is_relative_to_the_output_and_nan_is_the_worst() -> None:
    want = {"y": np.full((4, 2), 2.0, np.float32)}
    assert relative_error({"y": want["y"] + 0.2}, want) == pytest.approx(0.1)
    assert relative_error({"y": np.full((4, 2), np.nan, np.float32)}, want) == 1e30
