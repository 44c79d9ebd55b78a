"""Training with onnxruntime and NumPy alone: the training step is one ONNX graph.

Parameters, momenta and buffers stay in the runtime between the steps: each step's outputs
are the next one's inputs. Loss and accuracy on the local data, before and after, come from
the same graph at a learning rate of 0, so that batch normalization sees the batch, as in
training.

Source: McMahan et al. 2017 (FedAvg), Li et al. 2020 (FedProx).
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from edgewise_protocol.manifest import TensorSpec, TrainingSpec
from numpy.typing import NDArray

from edgewise_agent.engines.dtypes import NUMPY, name_of
from edgewise_agent.engines.onnx import FOREIGN
from edgewise_agent.learning.errors import DivergedError, LocalDataError, TrainingBundleError, TrainingFailedError

Arrays = dict[str, NDArray[Any]]
Values = dict[str, Any]
"""OrtValues by name."""


class Course(NamedTuple):
    """How to train."""

    epochs: int
    batch_size: int
    lr: float
    mu: float
    max_steps: int
    seed: tuple[int, ...]


class Outcome(NamedTuple):
    """New `p.*` and `b.*`, and what is told about them."""

    weights: Arrays
    metrics: dict[str, float]


class StepGraph:
    """A loaded training-step graph.

    Args:
        step: the ONNX file's bytes.
        spec: the bundle's training section.
        weights: `p.*` and `b.*` to start from.

    Raises:
        TrainingBundleError: the graph cannot be loaded, or the weights are not the graph's.
    """

    def __init__(self, step: bytes, spec: TrainingSpec, weights: Mapping[str, NDArray[Any]]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.load_model_format", "ONNX")
        try:
            self._session = onnxruntime.InferenceSession(step, options, providers=["CPUExecutionProvider"])
        except FOREIGN as error:
            raise TrainingBundleError(f"the training step cannot be loaded: {str(error)[:300]}") from error
        self._inputs = {arg.name for arg in self._session.get_inputs()}
        self._outputs = [arg.name for arg in self._session.get_outputs()]
        specs = {f"p.{s.name}": s for s in spec.params} | {f"b.{s.name}": s for s in spec.buffers}
        _check_weights(specs, weights)
        self._start = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in weights.items()}
        self._carried = {f"new_{name}": name for name in self._inputs if f"new_{name}" in self._outputs}
        given = {"x", "y", "lr", "mu", *self._start}
        momenta = {name: self._start["p" + name[1:]] for name in self._inputs if _stands_for(name, "m.", self._start)}
        anchors = {name: self._start["p" + name[1:]] for name in self._inputs if _stands_for(name, "g.", self._start)}
        unknown = self._inputs - given - momenta.keys() - anchors.keys()
        missing = {"loss", "correct", *(f"new_{name}" for name in specs)} - set(self._outputs)
        if unknown or missing or not {"x", "y", "lr"} <= self._inputs:
            raise TrainingBundleError(
                f"the training step has unknown inputs {sorted(unknown)} or lacks the outputs {sorted(missing)}"
            )
        self._fixed = {name: _value(array) for name, array in anchors.items()}
        self._state = {name: _value(array) for name, array in self._start.items() if name in self._inputs}
        self._state |= {name: _value(np.zeros_like(array)) for name, array in momenta.items()}

    def step(self, x: NDArray[Any], y: NDArray[Any], lr: float, mu: float) -> tuple[float, int]:
        """One step of training on a batch; its loss before the step and how many were right."""
        loss, correct, found = self._run(x, y, lr, mu)
        for output, name in self._carried.items():
            self._state[name] = found[output]
        return loss, correct

    def measure(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[float, int]:
        """Loss and number of right answers on a batch; nothing is changed."""
        loss, correct, _ = self._run(x, y, 0.0, 0.0)
        return loss, correct

    def weights(self) -> Arrays:
        """The present `p.*` and `b.*`; what the graph does not read is as it was given."""
        return {
            name: self._state[name].numpy() if name in self._state else array for name, array in self._start.items()
        }

    def _run(self, x: NDArray[Any], y: NDArray[Any], lr: float, mu: float) -> tuple[float, int, Values]:
        scalars = {"lr": np.array(lr, np.float32), "mu": np.array(mu, np.float32)}
        feeds = {**self._fixed, **self._state, "x": _value(x), "y": _value(y)}
        feeds |= {name: _value(array) for name, array in scalars.items() if name in self._inputs}
        try:
            found = dict(zip(self._outputs, self._session.run_with_ort_values(None, feeds), strict=True))
        except FOREIGN as error:
            raise TrainingFailedError(f"a training step failed: {str(error)[:300]}") from error
        return float(found["loss"].numpy()), int(found["correct"].numpy()), found


def train(graph: StepGraph, x: NDArray[Any], y: NDArray[Any], course: Course) -> Outcome:
    """Train on the local data.

    Args:
        x: (N, ...), N at least 2. y: (N,).

    Raises:
        DivergedError: a loss, a parameter or a buffer is no longer finite.
        TrainingFailedError: the runtime failed.
    """
    begin = time.perf_counter()
    before = _measured(graph, x, y, course.batch_size)
    order = np.random.default_rng(course.seed)
    steps = 0
    for _ in range(course.epochs):
        shuffled = order.permutation(len(x))
        for batch in batches(len(x), course.batch_size):
            if steps >= course.max_steps:
                break
            rows = shuffled[batch]
            loss, _ = graph.step(x[rows], y[rows], course.lr, course.mu)
            steps += 1
            if not np.isfinite(loss):
                raise DivergedError(f"the loss was {loss} in step {steps}")
    weights = graph.weights()
    wild = [name for name, array in weights.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if wild:
        raise DivergedError(f"{wild[0]} is no longer finite after {steps} steps")
    after = _measured(graph, x, y, course.batch_size)
    return Outcome(
        weights,
        {
            "loss_before": before[0],
            "loss_after": after[0],
            "accuracy_before": before[1],
            "accuracy_after": after[1],
            "steps": float(steps),
            "seconds": time.perf_counter() - begin,
        },
    )


def batches(samples: int, size: int) -> Iterator[slice]:
    """Cut `samples` in batches of `size` (at least 2); a lone last sample joins the batch before it."""
    size = max(2, size)
    start = 0
    while start < samples:
        end = start + size
        if samples - end <= 1:
            end = samples
        yield slice(start, end)
        start = end


def check_data(spec: TrainingSpec, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The local data as the graph takes them; labels of another integer type are widened.

    Raises:
        LocalDataError: too few, or of another shape or type than the graph's.
    """
    if y.dtype.kind in "iu" and NUMPY[spec.y.dtype].kind in "iu" and np.can_cast(y.dtype, NUMPY[spec.y.dtype]):
        y = y.astype(NUMPY[spec.y.dtype])
    for tensor, array in ((spec.x, x), (spec.y, y)):
        shape = tensor.shape[1:]
        fits = array.ndim == len(tensor.shape) and all(
            want in (-1, got) for want, got in zip(shape, array.shape[1:], strict=False)
        )
        if array.dtype != NUMPY[tensor.dtype] or not fits:
            raise LocalDataError(
                f"the local {tensor.name} should be {tensor.dtype} of shape {list(tensor.shape)}; "
                f"it is {name_of(array.dtype)} of shape {list(array.shape)}"
            )
    if len(x) != len(y) or len(x) < 2:
        raise LocalDataError(f"there are {len(x)} local samples and {len(y)} labels; at least 2 are needed")
    return x, y


def seed_of(seed: int, device_id: str) -> tuple[int, ...]:
    """The shuffling's seed: the round's and the device's."""
    return (seed & 0xFFFF_FFFF, zlib.crc32(device_id.encode()))


def _measured(graph: StepGraph, x: NDArray[Any], y: NDArray[Any], size: int) -> tuple[float, float]:
    loss, correct = 0.0, 0
    for batch in batches(len(x), size):
        batch_loss, batch_correct = graph.measure(x[batch], y[batch])
        loss += batch_loss * (batch.stop - batch.start)
        correct += batch_correct
    return loss / len(x), correct / len(x)


def _check_weights(specs: Mapping[str, TensorSpec], weights: Mapping[str, NDArray[Any]]) -> None:
    if set(specs) != set(weights):
        odd = sorted(set(specs) ^ set(weights))
        raise TrainingBundleError(f"the round's weights are not those of the training bundle: {odd[:4]}")
    for name, spec in specs.items():
        array = weights[name]
        if array.dtype != NUMPY[spec.dtype] or tuple(array.shape) != tuple(spec.shape):
            raise TrainingBundleError(
                f"{name} should be {spec.dtype} of shape {list(spec.shape)}; "
                f"it is {name_of(array.dtype)} of shape {list(array.shape)}"
            )


def _stands_for(name: str, prefix: str, weights: Mapping[str, Any]) -> bool:
    return name.startswith(prefix) and "p" + name[1:] in weights


def _value(array: NDArray[Any]) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
