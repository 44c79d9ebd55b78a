"""Make a run of weights that a federation gave, judged against the run that they started from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from edgewise_trainer import run_directory
from edgewise_trainer.comparison import PairedComparison, compare
from edgewise_trainer.config import TrainConfig
from edgewise_trainer.contents import Outcome, data_files, model_files, parameters, plot_files
from edgewise_trainer.datasets import Dataset
from edgewise_trainer.determinism import repeatable
from edgewise_trainer.domains import load_domains
from edgewise_trainer.durable import refuse_existing
from edgewise_trainer.errors import ConfigError, DataError, RunError
from edgewise_trainer.evaluation import Evaluation, evaluate
from edgewise_trainer.gate import judge_aggregate
from edgewise_trainer.models import build
from edgewise_trainer.progress import Progress, ProgressCallback, ignore
from edgewise_trainer.record import RunRecord
from edgewise_trainer.tracking import Tracker
from edgewise_trainer.weights import decode, load_state


def from_weights(
    config: TrainConfig,
    weights: Mapping[str, NDArray[Any]],
    parent_run: Path,
    out_dir: Path,
    progress: ProgressCallback | None = None,
) -> RunRecord:
    """Evaluate, judge, export and write an aggregate.

    Its `data/heldout` is the devices' domain, its `data/reference` half base and half domain.

    Args:
        config: the parent's configuration, with `[federation.data]`.
        weights: `p.*` and `b.*` by name, as in `weights.safetensors`.
        parent_run: the parent's directory; its digests are verified.
        out_dir: the run directory to make; it must not exist, or be empty.
        progress: see `training_run.train`.

    Raises:
        WeightsError: the weights do not fit the model.
        DataError: the data are not those that the parent was trained on and judged by.
        TrainerError: another of its kinds; no run directory is left then.
    """
    report = progress or ignore
    refuse_existing(out_dir)
    parent = run_directory.load_run(parent_run)
    tracker = Tracker(config.tracking, out_dir.parent)
    try:
        record = _judge(config, weights, (parent_run, parent), out_dir, report, tracker)
    except BaseException:
        tracker.abandon()
        raise
    tracker.finish(record, report)
    return record


def _judge(
    config: TrainConfig,
    weights: Mapping[str, NDArray[Any]],
    source: tuple[Path, RunRecord],
    out_dir: Path,
    report: ProgressCallback,
    tracker: Tracker,
) -> RunRecord:
    directory, parent = source
    report(Progress(stage="data", message=config.data.name))
    base, domain = _matching_domains(config, parent)
    report(Progress(stage="evaluate"))
    with repeatable(config.train.seed, config.train.threads):
        old = _model(config, decode(run_directory.read_verified(directory, parent, run_directory.WEIGHTS_FILE)))
        new = _model(config, weights)
        domain_old, domain_new = _heldout(old, domain), _heldout(new, domain)
        base_old, base_new = _heldout(old, base), _heldout(new, base)
    on_domain = compare(domain_old.right, domain_new.right)
    on_base = compare(base_old.right, base_new.right)
    tracker.start(f"{config.model.name} federated", parameters(config), {"edgewise.parent": parent.id})
    report(Progress(stage="export"))
    files = model_files(new, base) | data_files([base, domain], domain, config.train.seed) | plot_files((), domain_new)
    for name in (run_directory.STEP_FILE, run_directory.TRAINING_FILE):
        if name in parent.files:  # the step holds no weights, so it stays true
            files[name] = run_directory.read_verified(directory, parent, name)
    outcome = Outcome(
        config=config,
        base=base,
        domain=domain,
        metrics={
            **domain_new.figures,
            "parent_accuracy": domain_old.accuracy,
            "base_accuracy": base_new.accuracy,
            "parent_base_accuracy": base_old.accuracy,
            **_paired("paired", on_domain),
            **_paired("base_paired", on_base),
        },
        gate=judge_aggregate(on_domain, on_base, config.federation),
        evaluation=domain_new,
        mlflow_run_id=tracker.run_id,
        parent=parent.id,
    )
    report(Progress(stage="write"))
    return run_directory.write_run(out_dir, files, outcome.record)


def _matching_domains(config: TrainConfig, parent: RunRecord) -> tuple[Dataset, Dataset]:
    if config.federation.data is None:
        raise ConfigError("an aggregate is judged on [federation.data], which the configuration lacks")
    if parent.model != config.model.name:
        raise RunError(f"the parent run is of the model {parent.model!r}, the configuration of {config.model.name!r}")
    base, domain = load_domains(config)
    if domain is None:
        raise ConfigError("the configuration lacks [federation.data]")
    if parent.data.fingerprint != base.fingerprint:
        raise DataError("the base data are not those of the parent run: their fingerprints differ")
    if parent.domain is not None and parent.domain.fingerprint != domain.fingerprint:
        raise DataError("the devices' domain is not that of the parent run: the fingerprints differ")
    return base, domain


def _model(config: TrainConfig, state: Mapping[str, NDArray[Any]]) -> nn.Module:
    model = build(config.model.factory, config.model.options, seed=config.train.seed, folder=Path(config.folder))
    load_state(model, state)
    return model.eval()


def _heldout(model: nn.Module, data: Dataset) -> Evaluation:
    return evaluate(model, data.x_test, data.y_test, data.labels)


def _paired(prefix: str, paired: PairedComparison) -> dict[str, float]:
    return {
        f"{prefix}_both_right": paired.both_right,
        f"{prefix}_only_old": paired.only_old,
        f"{prefix}_only_new": paired.only_new,
        f"{prefix}_both_wrong": paired.both_wrong,
        f"{prefix}_gain": paired.gain,
        f"{prefix}_mcnemar_p": paired.p_value,
    }
