"""Train a model from a configuration and write its run."""

from __future__ import annotations

from pathlib import Path

from edgewise_trainer.config import TrainConfig
from edgewise_trainer.contents import Outcome, data_files, model_files, parameters, plot_files, training_files
from edgewise_trainer.determinism import repeatable
from edgewise_trainer.domains import load_domains
from edgewise_trainer.durable import refuse_existing
from edgewise_trainer.evaluation import evaluate
from edgewise_trainer.fitting import fit
from edgewise_trainer.gate import judge_run
from edgewise_trainer.models import build
from edgewise_trainer.progress import Progress, ProgressCallback, ignore
from edgewise_trainer.record import RunRecord
from edgewise_trainer.run_directory import write_run
from edgewise_trainer.tracking import Tracker


def train(config: TrainConfig, out_dir: Path, progress: ProgressCallback | None = None) -> RunRecord:
    """Train, evaluate, judge, export and write a run.

    The same configuration and data give the same weights, on one torch build and kind of CPU.

    Args:
        config: from `config.load_config`.
        out_dir: the run directory to make; it must not exist, or be empty.
        progress: called at each stage and after each epoch; what it raises ends the run.

    Raises:
        TrainerError: one of its kinds; no run directory is left then.
    """
    report = progress or ignore
    refuse_existing(out_dir)
    tracker = Tracker(config.tracking, out_dir.parent)
    try:
        record = _train(config, out_dir, report, tracker)
    except BaseException:
        tracker.abandon()
        raise
    tracker.finish(record, report)
    return record


def _train(config: TrainConfig, out_dir: Path, report: ProgressCallback, tracker: Tracker) -> RunRecord:
    report(Progress(stage="data", message=config.data.name))
    base, domain = load_domains(config)
    tracker.start(config.model.name, parameters(config), {"edgewise.data": base.fingerprint})
    with repeatable(config.train.seed, config.train.threads):
        model = build(config.model.factory, config.model.options, seed=config.train.seed, folder=Path(config.folder))
        history = fit(model, base, config.train, report, tracker.epoch)
        report(Progress(stage="evaluate"))
        evaluation = evaluate(model, base.x_test, base.y_test, base.labels)
        shifted = evaluate(model, domain.x_test, domain.y_test, domain.labels) if domain else None
    metrics = evaluation.figures | {"train_accuracy": history[-1].accuracy, "train_loss": history[-1].loss}
    if shifted is not None:
        metrics |= {"federation_accuracy": shifted.accuracy, "federation_loss": shifted.loss}
    report(Progress(stage="export"))
    files = model_files(model, base) | data_files([base], base, config.train.seed) | plot_files(history, evaluation)
    if config.federation.enabled:
        report(Progress(stage="training-graph"))
        files |= training_files(config, model, base)
    outcome = Outcome(
        config=config,
        base=base,
        domain=domain,
        metrics=metrics,
        gate=judge_run(evaluation, config.gate),
        evaluation=evaluation,
        mlflow_run_id=tracker.run_id,
    )
    report(Progress(stage="write"))
    return write_run(out_dir, files, outcome.record)
