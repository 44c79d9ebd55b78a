"""The danger: a device that learns something else than the round asked for, or sends what is not finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from edgewise_agent.learning.errors import DivergedError, LocalDataError, TrainingBundleError
from edgewise_agent.learning.training import Course, StepGraph, batches, check_data, seed_of, train
from hypothesis import given
from hypothesis import strategies as st


def numpy_training(material: Any, course: Course) -> dict[str, np.ndarray]:
    """The same course in float64: softmax regression, momentum 0.9, FedProx."""
    w, b = (material.start[k].astype(np.float64) for k in ("p.w", "p.b"))
    w0, b0, mw, mb = w.copy(), b.copy(), np.zeros_like(w), np.zeros_like(b)
    rng, steps = np.random.default_rng(course.seed), 0
    for _ in range(course.epochs):
        order = rng.permutation(len(material.x))
        for batch in batches(len(material.x), course.batch_size):
            if steps >= course.max_steps:
                break
            x, y = material.x[order[batch]].astype(np.float64), material.y[order[batch]]
            z = x @ w + b
            p = np.exp(z - z.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            d = (p - np.eye(3)[y]) / len(y)
            mw = 0.9 * mw + x.T @ d + course.mu * (w - w0)
            mb = 0.9 * mb + d.sum(0) + course.mu * (b - b0)
            w, b = w - course.lr * mw, b - course.lr * mb
            steps += 1
    return {"p.w": w, "p.b": b, "b.steps": np.array([steps])}


@pytest.mark.parametrize("mu", [0.0, 0.5])
@pytest.mark.parametrize(("batch_size", "max_steps"), [(10, 1000), (25, 7), (200, 1000)])
def test_the_update_is_what_numpy_computes(material: Any, mu: float, batch_size: int, max_steps: int) -> None:
    course = Course(3, batch_size, 0.05, mu, max_steps, seed_of(4, "d1"))
    found = train(StepGraph(material.step, material.spec, material.start), material.x, material.y, course)
    expected = numpy_training(material, course)
    assert found.weights.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found.weights[name], array, rtol=1e-4, atol=1e-5)
        assert found.weights[name].dtype == material.start[name].dtype
        assert found.weights[name].shape == material.start[name].shape
    assert found.metrics["steps"] == expected["b.steps"][0]
    assert found.metrics["loss_after"] < found.metrics["loss_before"]


def test_measuring_changes_nothing_and_counts_every_sample(material: Any) -> None:
    graph = StepGraph(material.step, material.spec, material.start)
    z = material.x @ material.start["p.w"]
    loss, correct = graph.measure(material.x, material.y)
    shifted = z - z.max(1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    assert loss == pytest.approx(-logp[np.arange(len(z)), material.y].mean(), rel=1e-5)
    assert correct == (z.argmax(1) == material.y).sum()
    for name, array in material.start.items():
        assert graph.weights()[name].tobytes() == array.tobytes()


def test_devices_and_seeds_shuffle_differently(material: Any) -> None:
    def run(seed: tuple[int, ...]) -> bytes:
        graph = StepGraph(material.step, material.spec, material.start)
        return train(graph, material.x, material.y, Course(1, 10, 0.1, 0, 99, seed)).weights["p.w"].tobytes()

    assert run(seed_of(1, "d1")) == run(seed_of(1, "d1"))
    assert len({run(seed_of(1, "d1")), run(seed_of(1, "d2")), run(seed_of(2, "d1"))}) == 3


@given(st.integers(2, 300), st.integers(1, 64))
def test_batches_cover_every_sample_once_and_none_is_lone(samples: int, size: int) -> None:
    cut = list(batches(samples, size))
    assert [row for batch in cut for row in range(batch.start, batch.stop)] == list(range(samples))
    assert all(2 <= batch.stop - batch.start <= max(2, size) + 1 for batch in cut)


def test_divergence_is_not_sent(material: Any) -> None:
    graph = StepGraph(material.step, material.spec, material.start)
    with pytest.raises(DivergedError), np.errstate(all="ignore"):
        train(graph, material.x * np.float32(1e30), material.y, Course(5, 10, 1e30, 0, 99, (1,)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "p.b"}, r"not those of the training bundle: \['p.b'\]"),
        (lambda s: {**s, "p.w": s["p.w"].T.copy()}, r"p.w should be FP32 of shape \[4, 3\]"),
        (lambda s: {**s, "p.w": s["p.w"].astype(np.float64)}, "it is FP64"),
        (lambda s: {**s, "p.evil": s["p.w"]}, "not those of the training bundle"),
    ],
)
def test_weights_that_are_not_the_bundles_are_refused(material: Any, change: Any, says: str) -> None:
    with pytest.raises(TrainingBundleError, match=says):
        StepGraph(material.step, material.spec, change(material.start))


def test_a_step_that_could_be_of_two_formats_is_onnx(material: Any) -> None:
    """Bytes 4 to 7 say ORTM, by which onnxruntime guesses a file of its own format."""
    model = onnx.load_from_string(material.step)
    model.producer_name = "ORTM"
    data = model.SerializeToString()
    assert data[4:8] == b"ORTM"
    StepGraph(data, material.spec, material.start)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (np.zeros((5, 4), np.float64), np.zeros(5, np.int64), "local x should be FP32"),
        (np.zeros((5, 3), np.float32), np.zeros(5, np.int64), r"of shape \[-1, 4\]; it is FP32 of shape \[5, 3\]"),
        (np.zeros((5, 4), np.float32), np.zeros(4, np.int64), "5 local samples and 4 labels"),
        (np.zeros((1, 4), np.float32), np.zeros(1, np.int64), "at least 2"),
        (np.zeros((5, 4), np.float32), np.zeros(5, np.float32), "local y should be INT64"),
    ],
)
def test_data_that_the_graph_does_not_take_are_refused(material: Any, x: Any, y: Any, says: str) -> None:
    with pytest.raises(LocalDataError, match=says):
        check_data(material.spec, x, y)


def test_narrow_labels_are_widened(material: Any) -> None:
    _, y = check_data(material.spec, np.zeros((2, 4), np.float32), np.array([1, 2], np.uint8))
    assert y.dtype == np.int64
    assert y.tolist() == [1, 2]
