"""Danger: data change unnoticed, or a held-out image is trained on, turned or upright."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgewise_trainer import datasets
from edgewise_trainer.datasets.dataset import Dataset, check_disjoint, stratified_split
from edgewise_trainer.datasets.digits import ORIGIN
from edgewise_trainer.errors import ConfigError, DataError, FactoryError
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

OPTIONS = {"seed": 7, "test_fraction": 0.25}


@pytest.fixture(scope="module")
def upright() -> Dataset:
    return datasets.load("digits", OPTIONS)


@pytest.fixture(scope="module")
def turned() -> Dataset:
    return datasets.load("digits", {**OPTIONS, "rotate_degrees": [15.0, 35.0]})


def test_digits_are_raw_and_split_by_class(upright: Dataset) -> None:
    assert upright.x_train.shape == (1347, 1, 8, 8)
    assert upright.x_test.shape == (450, 1, 8, 8)
    assert (upright.x_train.min(), upright.x_train.max()) == (0.0, 16.0)
    shares = np.bincount(upright.y_test) / (np.bincount(upright.y_test) + np.bincount(upright.y_train))
    assert np.all(np.abs(shares - 0.25) < 0.01)


def test_fingerprint_is_of_the_content(upright: Dataset) -> None:
    again = datasets.load("digits", OPTIONS)
    assert again.fingerprint == upright.fingerprint
    pixel = upright.x_train.copy()
    pixel[0, 0, 3, 3] += 1
    label = upright.y_test.copy()
    label[0] = (label[0] + 1) % 10
    others = [
        replace(upright, x_train=pixel),
        replace(upright, y_test=label),
        replace(upright, labels=("zero", *upright.labels[1:])),
        datasets.load("digits", {**OPTIONS, "seed": 8}),
    ]
    assert len({upright.fingerprint, *(d.fingerprint for d in others)}) == 5


def test_fingerprint_does_not_depend_on_memory_order(upright: Dataset) -> None:
    strided = replace(upright, x_train=np.asfortranarray(upright.x_train))
    assert strided.fingerprint == upright.fingerprint


def test_turned_digits_hold_out_the_same_originals(upright: Dataset, turned: Dataset) -> None:
    assert turned.origin == upright.origin == ORIGIN
    assert np.array_equal(turned.test_ids, upright.test_ids)
    assert not np.intersect1d(turned.train_ids, upright.test_ids).size
    assert not np.intersect1d(turned.train_ids, turned.test_ids).size
    assert set(turned.train_ids) | set(turned.test_ids) == set(range(1797))
    assert turned.x_test.min() >= 0
    assert turned.x_test.max() <= 16
    assert not np.array_equal(turned.x_test, upright.x_test)


def test_no_angle_leaves_the_images_as_they_were(upright: Dataset) -> None:
    still = datasets.load("digits", {**OPTIONS, "rotate_degrees": [0.0, 0.0]})
    assert np.allclose(still.x_test, upright.x_test, atol=1e-5)


def test_a_leak_between_domains_is_seen(upright: Dataset) -> None:
    other = datasets.load("digits", {**OPTIONS, "seed": 8, "rotate_degrees": [15.0, 35.0]})
    with pytest.raises(DataError, match="held-out items of 'sklearn-digits' are also trained on"):
        check_disjoint(upright, other)
    with pytest.raises(DataError, match="also trained on"):
        replace(upright, train_ids=np.concatenate([upright.test_ids[:1], upright.train_ids[1:]]))


@given(
    y=st.lists(st.integers(0, 5), min_size=2, max_size=200),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
)
def test_split_is_a_partition_with_every_class_on_both_sides(y: list[int], fraction: float, seed: int) -> None:
    classes = np.array(y, dtype=np.int64)
    train, test = stratified_split(classes, fraction, seed)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(len(y)))
    for label in np.unique(classes):
        assert label in classes[train]
        if (classes == label).sum() > 1:
            assert label in classes[test]


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(DataError, match="no data set 'digit'; known: digits, file"):
        datasets.load("digit")
    with pytest.raises(ConfigError, match=r"has no key 'rotate'.*rotate_degrees"):
        datasets.load("digits", {"rotate": [0, 1]})
    with pytest.raises(ConfigError, match="ascending"):
        datasets.load("digits", {"rotate_degrees": [40.0, 20.0]})


def small_arrays() -> dict[str, NDArray[np.generic]]:
    random = np.random.default_rng(0)
    return {"x": random.integers(0, 255, (40, 5, 5), dtype=np.uint8), "y": np.arange(40) % 4}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files_by_relative_path(tmp_path: Path, suffix: str) -> None:
    arrays = small_arrays()
    if suffix == ".npz":
        np.savez(tmp_path / "d.npz", **arrays)
    else:
        save_file(arrays, tmp_path / "d.safetensors")
    found = datasets.load("file", {"path": f"d{suffix}", "add_channel": True}, folder=tmp_path)
    assert found.sample_shape == (1, 5, 5)
    assert found.labels == ("0", "1", "2", "3")
    assert found.sizes == {"train": 32, "test": 8}
    assert found.x_train.dtype == np.float32


def test_given_parts_are_kept(tmp_path: Path) -> None:
    x, y = small_arrays()["x"], small_arrays()["y"]
    np.savez(tmp_path / "d.npz", x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
    found = datasets.load("file", {"path": "d.npz", "labels": ["a", "b", "c", "d"]}, folder=tmp_path)
    assert np.array_equal(found.x_test, x[30:].astype(np.float32))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 2))}, "needs x and y"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3, np.int64)}, "y must be"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4)}, "must be integers"),
        ({"x": np.full((4, 2), np.nan), "y": np.array([0, 1, 0, 1])}, "not finite"),
        ({"x": np.zeros((4, 2)), "y": np.array([0, -1, 1, -1])}, "classes from -1"),
        ({"x": np.array([["a", "b"]] * 4), "y": np.array([0, 1, 0, 1])}, "must be numbers"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, arrays: dict[str, NDArray[np.generic]], message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=message):
        datasets.load("file", {"path": "d.npz"}, folder=tmp_path)


def test_a_file_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}], dtype=object), y=np.array([0]), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        datasets.load("file", {"path": "d.npz"}, folder=tmp_path)
    (tmp_path / "d.safetensors").write_bytes(b"not tensors")
    with pytest.raises(DataError, match="not a safetensors file"):
        datasets.load("file", {"path": "d.safetensors"}, folder=tmp_path)
    with pytest.raises(DataError, match=r"only \.npz"):
        datasets.load("file", {"path": __file__}, folder=tmp_path)


def test_factory_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "own_data_of_a_test.py").write_text(
        "import numpy as np\n"
        "from edgewise_trainer.datasets import Dataset\n"
        "def make(n):\n"
        "    x = np.zeros((n, 2), np.float32); y = np.arange(n) % 2\n"
        "    return Dataset(x_train=x, y_train=y, x_test=x, y_test=y, labels=('a', 'b'))\n"
        "def wrong():\n"
        "    return 3\n"
    )
    assert datasets.load("own_data_of_a_test:make", {"n": 6}, folder=tmp_path).sizes["train"] == 6
    with pytest.raises(FactoryError, match="returned int"):
        datasets.load("own_data_of_a_test:wrong", folder=tmp_path)
    with pytest.raises(FactoryError, match="unexpected keyword"):
        datasets.load("own_data_of_a_test:make", {"m": 6}, folder=tmp_path)
    with pytest.raises(FactoryError, match="cannot be imported"):
        datasets.load("absent_module_of_a_test:make", folder=tmp_path)


@given(clients=st.integers(1, 6), seed=st.integers(0, 1000), alpha=st.sampled_from([None, 0.5, 1.0, 100.0]))
def test_clients_share_the_training_part_and_nothing_else(clients: int, seed: int, alpha: float | None) -> None:
    n = 600
    dataset = Dataset(
        x_train=np.arange(n, dtype=np.float32).reshape(n, 1),
        y_train=np.arange(n) % 10,
        x_test=np.full((10, 1), -1, np.float32),
        y_test=np.arange(10),
        labels=tuple("0123456789"),
    )
    parts = datasets.split_by_label(dataset, clients, seed, alpha)
    assert len(parts) == clients
    assert np.array_equal(np.sort(np.concatenate([p.x[:, 0] for p in parts])), np.arange(n))
    for part in parts:
        assert np.array_equal(part.y, part.x[:, 0].astype(np.int64) % 10)
    again = datasets.split_by_label(dataset, clients, seed, alpha)
    assert all(np.array_equal(a.x, b.x) for a, b in zip(parts, again, strict=True))
    if alpha is None:
        owners = [set(p.y.tolist()) for p in parts]
        assert sum(map(len, owners)) == 10


def test_a_small_alpha_skews_more(turned: Dataset) -> None:
    def skew(alpha: float) -> float:
        parts = datasets.split_by_label(turned, 3, 7, alpha)
        shares = np.stack([np.bincount(p.y, minlength=10) / len(p.y) for p in parts])
        return float(np.abs(shares - shares.mean(0)).sum())

    assert skew(0.3) > 2 * skew(100.0)


def test_impossible_splits_are_refused(turned: Dataset) -> None:
    with pytest.raises(DataError, match="at most 10 clients"):
        datasets.split_by_label(turned, 11, 0)
    with pytest.raises(DataError, match="raise alpha"):
        datasets.split_by_label(turned, 100, 0, 0.01)
    with pytest.raises(DataError, match="alpha must be positive"):
        datasets.split_by_label(turned, 3, 0, 0.0)


def test_client_file_is_what_a_device_reads(tmp_path: Path, turned: Dataset) -> None:
    part = datasets.split_by_label(turned, 3, 7, 1.0)[0]
    datasets.write_samples(tmp_path / "client.safetensors", part)
    arrays = load_file(tmp_path / "client.safetensors")
    assert np.array_equal(arrays["x"], part.x)
    assert np.array_equal(arrays["y"], part.y)
    assert [p.name for p in tmp_path.iterdir()] == ["client.safetensors"]


def test_corruption_grows_with_severity_and_repeats(upright: Dataset) -> None:
    x = upright.x_test
    assert np.array_equal(datasets.corrupt(x, 0.0, 1), x)
    mild, strong = datasets.corrupt(x, 0.2, 1), datasets.corrupt(x, 0.9, 1)
    assert np.abs(mild - x).mean() < np.abs(strong - x).mean() / 2
    assert np.array_equal(strong, datasets.corrupt(x, 0.9, 1))
    assert not np.array_equal(strong, datasets.corrupt(x, 0.9, 2))
    assert strong.dtype == np.float32
    assert strong.min() >= 0
    assert strong.max() <= 16
    with pytest.raises(DataError, match="severity"):
        datasets.corrupt(x, 1.5, 1)
