"""Danger: layers in float that need not be, or a search for them without an end."""

from __future__ import annotations

from itertools import combinations

import pytest
from edgewise_converter.search.fewest import fewest
from edgewise_converter.search.sensitivity import Unit, relative_error, units_of


def ranked(*damages: float) -> list[Unit]:
    return [Unit((f"layer{i}",), damage) for i, damage in enumerate(damages)]


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


def test_many_layers_become_runs_of_neighbours_and_none_is_lost() -> None:
    layers = tuple(f"l{i}" for i in range(101))
    units = units_of(layers, 40)
    assert len(units) <= 40
    assert tuple(name for unit in units for name in unit) == layers


def test_damage_is_relative_to_the_output_and_nan_is_the_worst() -> None:
    import numpy as np

    want = {"y": np.full((4, 2), 2.0, np.float32)}
    assert relative_error({"y": want["y"] + 0.2}, want) == pytest.approx(0.1)
    assert relative_error({"y": np.full((4, 2), np.nan, np.float32)}, want) == 1e30
