"""Danger: one client's broken or hostile update spoils the mean, or the mean is not the mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgewise_server.errors import InvalidError
from edgewise_server.federation.aggregation import ClientUpdate, aggregate
from edgewise_server.federation.strategies.fedavg import FedAvg
from edgewise_server.federation.strategies.table import STRATEGIES, strategy_named
from edgewise_server.federation.updates import UpdateError, check_update, read_layout
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save, save_file

SHAPES = {"p.conv.weight": (4, 1, 3, 3), "p.head.weight": (10, 70_000), "p.head.bias": (10,), "b.bn.mean": (4,)}


def tensors(seed: int, scale: float = 1.0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    found: dict[str, Any] = {n: (random.normal(0, scale, s)).astype(np.float32) for n, s in SHAPES.items()}
    return found | {"b.bn.batches": np.array(seed, dtype=np.int64)}


def write(folder: Path, name: str, values: dict[str, Any]) -> Path:
    path = folder / f"{name}.safetensors"
    save_file(values, path)
    return path


@pytest.fixture
def start(tmp_path: Path) -> Path:
    return write(tmp_path, "start", tensors(0))


def run(start: Path, updates: list[tuple[Path, int]], **options: Any) -> Any:
    clients = [ClientUpdate(f"d{n}", path, samples) for n, (path, samples) in enumerate(updates)]
    return aggregate("fedavg", start, clients, **({"min_clients": 1} | options))


def test_the_mean_is_numpys_weighted_mean(start: Path, tmp_path: Path) -> None:
    samples = [1, 10, 100, 1000, 3]
    values = [tensors(n + 1) for n in range(5)]
    result = run(start, [(write(tmp_path, str(n), v), samples[n]) for n, v in enumerate(values)])
    found = load(result.weights)
    for name in SHAPES:
        expected = np.average(np.stack([v[name].astype(np.float64) for v in values]), axis=0, weights=samples)
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=2e-6)
        assert found[name].dtype == np.float32
    assert found["b.bn.batches"] == 0  # counters stay the global ones
    assert len(result.accepted) == 5


def test_equal_updates_give_themselves_and_equal_bytes(start: Path, tmp_path: Path) -> None:
    same = write(tmp_path, "same", tensors(0))
    first, second = run(start, [(same, 7), (same, 9)]), run(start, [(same, 7), (same, 9)])
    assert first.weights == second.weights == start.read_bytes()


def poisoned(kind: str) -> dict[str, Any]:
    values = tensors(9)
    match kind:
        case "nan":
            values["p.head.bias"][3] = np.nan
        case "infinite buffer":
            values["b.bn.mean"][0] = np.inf
        case "huge":
            values["p.head.weight"][5, 5] = 3e38
        case "missing":
            del values["p.head.bias"]
        case "extra":
            values["p.backdoor"] = np.zeros(1, np.float32)
        case "shape":
            values["p.head.bias"] = np.zeros(11, np.float32)
        case "dtype":
            values["p.head.bias"] = np.zeros(10, np.float64)
    return values


@pytest.mark.parametrize("kind", ["nan", "infinite buffer", "huge", "missing", "extra", "shape", "dtype", "rubbish"])
def test_a_bad_update_is_named_and_leaves_no_trace(start: Path, tmp_path: Path, kind: str) -> None:
    good = [(write(tmp_path, f"good{n}", tensors(n + 1)), 10) for n in range(2)]
    if kind == "rubbish":
        bad = tmp_path / "bad"
        bad.write_bytes(b"\xff" * 100)
    else:
        bad = write(tmp_path, "bad", poisoned(kind))
    result = run(start, [good[0], (bad, 10_000), good[1]])
    assert [bool(client.error) for client in result.clients] == [False, True, False]
    assert result.weights == run(start, good).weights


def test_too_few_good_updates_give_no_weights(start: Path, tmp_path: Path) -> None:
    good, bad = write(tmp_path, "good", tensors(1)), write(tmp_path, "bad", poisoned("nan"))
    result = run(start, [(good, 10), (bad, 10)], min_clients=2)
    assert result.weights == b"" and len(result.accepted) == 1


def test_clipping_bounds_what_one_client_can_move(start: Path, tmp_path: Path) -> None:
    far = write(tmp_path, "far", tensors(1, scale=1000.0))
    result = run(start, [(far, 10)], clip_norm=1.5)
    before, after = load(start.read_bytes()), load(result.weights)
    moved = np.sqrt(sum(float(((after[n] - before[n]).astype(np.float64) ** 2).sum()) for n in SHAPES if n[0] == "p"))
    assert moved == pytest.approx(1.5, rel=1e-3)
    assert result.clients[0].clipped and result.clients[0].norm > 1000
    np.testing.assert_allclose(after["b.bn.mean"], load(far.read_bytes())["b.bn.mean"], rtol=1e-5)
    near = write(tmp_path, "near", tensors(0))
    assert not run(start, [(near, 10)], clip_norm=1.5).clients[0].clipped


def test_one_update_is_in_memory_at_a_time(start: Path, tmp_path: Path) -> None:
    """The progress callback sees each client before the next is opened, and may stop the whole."""
    paths = [(write(tmp_path, str(n), tensors(n + 1)), 10) for n in range(3)]

    def stop(device: str) -> None:
        if device == "d1":
            raise InterruptedError

    paths[2][0].unlink()
    with pytest.raises(InterruptedError):
        run(start, paths, progress=stop)


def test_the_layout_refuses_what_is_no_weights_file(tmp_path: Path) -> None:
    for number, values in enumerate(
        [{"q.x": np.zeros(1, np.float32)}, {"p.x": np.zeros(1, np.float64)}, {"p.x": np.zeros(1, np.int64)}]
    ):
        with pytest.raises(UpdateError):
            read_layout(write(tmp_path, str(number), values))
    with pytest.raises(UpdateError):
        read_layout(tmp_path / "absent")


def test_check_update_is_by_names_shapes_and_types(start: Path, tmp_path: Path) -> None:
    layout = read_layout(start)
    check_update(write(tmp_path, "good", tensors(5)), layout)
    for kind in ("missing", "extra", "shape", "dtype"):
        with pytest.raises(UpdateError):
            check_update(write(tmp_path, "bad", poisoned(kind)), layout)


def test_strategies_are_a_table() -> None:
    assert strategy_named("fedavg") is FedAvg
    with pytest.raises(InvalidError, match="fedavg"):
        strategy_named("unheard-of")


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_every_strategy_stays_within_its_clients(name: str, data: st.DataObject) -> None:
    """The result lies between the smallest and largest client value, whatever the order."""
    size = data.draw(st.integers(1, 40))
    number = data.draw(st.integers(1, 5))
    values = st.floats(-100, 100, width=32)
    clients = [np.array(data.draw(st.lists(values, min_size=size, max_size=size)), np.float32) for _ in range(number)]
    samples = [data.draw(st.integers(1, 1000)) for _ in range(number)]
    start = np.zeros(size, np.float32)
    results = []
    for order in (range(number), reversed(range(number))):
        running = STRATEGIES[name](start, size)
        for n in order:
            running.add(clients[n].copy(), samples[n])
        results.append(running.result())
    stacked = np.stack(clients)
    assert (results[0] >= stacked.min(0) - 1e-3).all() and (results[0] <= stacked.max(0) + 1e-3).all()
    np.testing.assert_allclose(results[0], results[1], atol=1e-4)
    assert save({"p.x": start}) == save({"p.x": np.zeros(size, np.float32)})  # the start is not changed
