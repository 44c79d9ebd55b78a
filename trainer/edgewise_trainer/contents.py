"""The files of a run directory and its record, made from a model, its data and its figures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final

import msgspec
import torch
from edgewise_protocol.manifest import TensorSpec
from torch import nn

from edgewise_trainer import plots, run_directory, weights
from edgewise_trainer.config import TrainConfig
from edgewise_trainer.datasets import ClientData, Dataset
from edgewise_trainer.datasets.clients import encode_samples
from edgewise_trainer.domains import describe, reference_sample
from edgewise_trainer.evaluation import Evaluation
from edgewise_trainer.exported import encode_program, export_program
from edgewise_trainer.fitting import EpochMetrics
from edgewise_trainer.gate import Gate
from edgewise_trainer.record import MAX_CLASSES, EvaluationRecord, RunRecord, run_id
from edgewise_trainer.training_graph import export_training_step

Files = dict[str, bytes]
REFERENCE_SAMPLES: Final = 2000
_PACKAGES: Final = ("edgewise-trainer", "torch", "numpy", "onnx", "onnxruntime", "onnxscript")
_log = logging.getLogger(__name__)


def model_files(model: nn.Module, data: Dataset) -> Files:
    """The exported program and the weights.

    Raises:
        ExportError: see `exported.export_program`.
    """
    example = torch.from_numpy(data.x_test[:16].repeat(2, axis=0))
    return {
        run_directory.MODEL_FILE: encode_program(export_program(model, example)),
        run_directory.WEIGHTS_FILE: weights.encode(weights.state_of(model)),
    }


def data_files(reference: list[Dataset], heldout: Dataset, seed: int) -> Files:
    """Samples of the training distribution, from each of `reference`, and the held-out ones to judge by."""
    x, y = reference_sample(reference, REFERENCE_SAMPLES, seed)
    return {
        run_directory.REFERENCE_FILE: encode_samples(ClientData(x=x, y=y)),
        run_directory.HELDOUT_FILE: encode_samples(ClientData(x=heldout.x_test, y=heldout.y_test)),
    }


def training_files(config: TrainConfig, model: nn.Module, data: Dataset) -> Files:
    """The training-step graph for devices, gated, and its description.

    Raises:
        ExportError, GraphGateError: see `training_graph`.
    """
    step = export_training_step(
        model,
        torch.from_numpy(data.x_train),
        torch.from_numpy(data.y_train),
        momentum=config.federation.momentum,
        weight_decay=config.federation.weight_decay,
        seed=config.train.seed,
    )
    return {
        run_directory.STEP_FILE: step.model,
        run_directory.TRAINING_FILE: msgspec.json.format(msgspec.json.encode(step.spec), indent=1) + b"\n",
    }


def plot_files(history: Sequence[EpochMetrics], evaluation: Evaluation) -> Files:
    """Plots where matplotlib is installed; a plot that fails is left out."""
    if not plots.available():
        return {}
    try:
        return plots.draw(history, evaluation)
    except Exception as error:  # noqa: BLE001 - a picture must not lose a run
        _log.warning("the plots are left out: %s", error)
        return {}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All that a record says besides the files' digests."""

    config: TrainConfig
    base: Dataset
    domain: Dataset | None
    metrics: dict[str, float]
    gate: Gate
    evaluation: Evaluation
    mlflow_run_id: str | None
    parent: str | None = None

    def record(self, digests: dict[str, str]) -> RunRecord:
        """The record of a run whose files have these digests."""
        config, base = self.config, self.base
        weights_sha256 = digests[run_directory.WEIGHTS_FILE]
        domain = config.federation.data
        return RunRecord(
            id=run_id(config.model.name, config.sha256, base.fingerprint, weights_sha256, self.parent),
            model=config.model.name,
            task="classification",
            labels=base.labels,
            input=TensorSpec(name="x", dtype="FP32", shape=(-1, *base.sample_shape)),
            output=TensorSpec(name="logits", dtype="FP32", shape=(-1, len(base.labels))),
            seed=config.train.seed,
            data=describe(config.data, base),
            domain=describe(domain, self.domain) if domain and self.domain else None,
            metrics={name: float(value) for name, value in sorted(self.metrics.items())},
            gate=self.gate,
            evaluation=_in_full(self.evaluation),
            config_sha256=config.sha256,
            weights_sha256=weights_sha256,
            files=digests,
            parent=self.parent,
            mlflow_run_id=self.mlflow_run_id,
            trainer=_versions(),
        )


def _in_full(evaluation: Evaluation) -> EvaluationRecord:
    if len(evaluation.labels) > MAX_CLASSES:
        return EvaluationRecord(per_class={}, confusion=())
    rows = tuple(tuple(int(n) for n in row) for row in evaluation.confusion)
    return EvaluationRecord(per_class=evaluation.per_class, confusion=rows)


def parameters(config: TrainConfig) -> dict[str, Any]:
    """The configuration as flat names and values, for a tracker."""
    flat: dict[str, Any] = {"config_sha256": config.sha256}
    for name in ("model", "data", "train", "gate", "federation"):
        for key, value in msgspec.to_builtins(getattr(config, name)).items():
            flat[f"{name}.{key}"] = value
    return flat


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
