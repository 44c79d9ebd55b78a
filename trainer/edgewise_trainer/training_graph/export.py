"""Export a model's training step, proven against torch, or refuse."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from edgewise_protocol.manifest import DType, TensorSpec, TrainingSpec
from torch import Tensor, nn

from edgewise_trainer.errors import ExportError
from edgewise_trainer.gate import Check
from edgewise_trainer.training_graph import gates
from edgewise_trainer.training_graph.onnx_form import to_onnx
from edgewise_trainer.training_graph.reference import Reference
from edgewise_trainer.training_graph.step import Step, build_step
from edgewise_trainer.training_graph.tracing import trace

STEP_FILE: Final = "step.onnx"
WEIGHTS_FILE: Final = "weights.safetensors"
_EXAMPLE: Final = 4
"""Batch while tracing: neither 1, which becomes a constant, nor a size that the model itself has."""
_GATE_BATCHES: Final = (2, 7, 16)
_MANY_BATCH: Final = 8
_DTYPES: Final[dict[torch.dtype, DType]] = {
    torch.float32: "FP32",
    torch.float64: "FP64",
    torch.float16: "FP16",
    torch.int64: "INT64",
    torch.int32: "INT32",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """A proven training step."""

    model: bytes
    """The ONNX file; it holds no weights."""
    spec: TrainingSpec
    checks: tuple[Check, ...]
    """The gates' figures."""


def export_training_step(
    model: nn.Module,
    example_x: Tensor,
    example_y: Tensor,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> TrainingStep:
    """Export the training step of a classifier under cross-entropy.

    Args:
        model: a float32 module of one input and one output; it is not changed.
        example_x: real samples, float32 (N, ...), N >= 2; the gates draw their batches from them.
        example_y: their classes, int64 (N,).
        momentum, weight_decay: of the devices' optimizer; they become constants of the graph.
        seed: of the gates' draws.

    Raises:
        ExportError: the model's step cannot be exported.
        GraphGateError: it was exported, and is not what torch computes.
    """
    _check_example(example_x, example_y)
    single = copy.deepcopy(model).float().train()
    double = copy.deepcopy(model).double().train()
    step, graph = _traced(single, example_x, example_y, momentum, weight_decay)
    exact_step, exact_graph = _traced(double, example_x.double(), example_y, momentum, weight_decay)

    def draw(size: int, draw_seed: int) -> tuple[Tensor, Tensor]:
        return _batch(example_x, example_y, size, draw_seed)

    x, y = draw(_EXAMPLE, seed)
    proto = to_onnx(step, graph, x, y)
    data = proto.SerializeToString(deterministic=True)
    witness = Reference(single, momentum=momentum, weight_decay=weight_decay)
    exact_witness = Reference(double, momentum=momentum, weight_decay=weight_decay)
    exact_batches = [_batch(example_x.double(), example_y, _MANY_BATCH, seed + i) for i in range(gates.MANY_STEPS)]
    checks = (
        gates.check_form(step, proto),
        *(gates.check_one_step(step, (witness, exact_witness), data, size, draw, seed) for size in _GATE_BATCHES),
        gates.check_same_operators(graph, exact_graph),
        gates.check_many_steps(exact_step, exact_witness, exact_graph, exact_batches),
    )
    return TrainingStep(model=data, spec=_spec(single, example_x, momentum), checks=checks)


def _traced(
    model: nn.Module, x: Tensor, y: Tensor, momentum: float, weight_decay: float
) -> tuple[Step, torch.fx.GraphModule]:
    step = build_step(model, momentum=momentum, weight_decay=weight_decay)
    graph = trace(step, *_batch(x, y, _EXAMPLE, 0))
    gates.check_traced(graph)
    return step, graph


def _batch(x: Tensor, y: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `count` samples, with repetition where there are fewer."""
    chosen = torch.from_numpy(np.random.default_rng(seed).choice(len(y), count, replace=count > len(y)))
    return x[chosen].contiguous(), y[chosen].contiguous()


def _check_example(x: Tensor, y: Tensor) -> None:
    if x.dtype != torch.float32 or y.dtype != torch.int64 or x.dim() < 2 or y.shape != x.shape[:1] or len(y) < 2:
        raise ExportError(
            f"the example must be float32 (N, ...) and int64 (N,), N >= 2; "
            f"not {x.dtype} {tuple(x.shape)} and {y.dtype} {tuple(y.shape)}"
        )


def _spec(model: nn.Module, x: Tensor, momentum: float) -> TrainingSpec:
    return TrainingSpec(
        step_file=STEP_FILE,
        initial_file=WEIGHTS_FILE,
        x=TensorSpec(name="x", dtype="FP32", shape=(-1, *x.shape[1:])),
        y=TensorSpec(name="y", dtype="INT64", shape=(-1,)),
        params=tuple(_tensor_spec(n, p) for n, p in model.named_parameters()),
        buffers=tuple(_tensor_spec(n, b) for n, b in model.named_buffers()),
        momentum=momentum > 0,
    )


def _tensor_spec(name: str, tensor: Tensor) -> TensorSpec:
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise ExportError(f"{name} is {tensor.dtype}, which a training bundle cannot hold")
    return TensorSpec(name=name, dtype=dtype, shape=tuple(tensor.shape))
