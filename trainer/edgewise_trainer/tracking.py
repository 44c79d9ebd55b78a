"""Tracking in MLflow: parameters, metrics per epoch, tags.

A run is worth more than its entry in a tracker: whatever MLflow or its server does, the run
goes on, tracking stops, and the reason is kept. MLflow is imported only here and only when a
run is tracked (1.3 s [measured]).
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from edgewise_trainer.config import TrackingSection
from edgewise_trainer.fitting import EpochMetrics
from edgewise_trainer.progress import Progress, ProgressCallback
from edgewise_trainer.record import RunRecord

_ENVIRONMENT: Final = {
    # Training runs report to the operator's tracker and to nobody else.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # An absent server costs seconds, not the minutes of the default seven retries.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # The making of a new database is told line by line otherwise, in the middle of a progress bar.
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
_MAX_PARAM_CHARS: Final = 500
_log = logging.getLogger(__name__)


class Tracker:
    """One run's entry in MLflow, or nothing after the first failure."""

    def __init__(self, section: TrackingSection, runs: Path) -> None:
        """Take no action yet; `runs` is the folder of the default database."""
        self._section = section
        self._runs = runs
        self._client: Any = None
        self.run_id: str | None = None
        self.failure: str | None = None
        """Why tracking stopped, if it did."""

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Open the entry."""
        if self._section.enabled:
            self._attempt(lambda: self._open(name, params, tags))

    def epoch(self, metrics: EpochMetrics) -> None:
        """Log one epoch."""
        values = {
            "train_loss": metrics.loss,
            "train_accuracy": metrics.accuracy,
            "heldout_loss": metrics.heldout_loss,
            "heldout_accuracy": metrics.heldout_accuracy,
            "lr": metrics.lr,
        }
        self._log(values, metrics.epoch)

    def finish(self, record: RunRecord, report: ProgressCallback) -> None:
        """Log the final figures and close the entry; report why tracking stopped, if it did."""
        self._log(record.metrics, 0)
        tags = {
            "edgewise.run": record.id,
            "edgewise.weights_sha256": record.weights_sha256,
            "edgewise.gate": "passed" if record.gate.passed else "failed",
        }
        if self._client is not None:
            self._attempt(lambda: self._close(tags, "FINISHED"))
        if self.failure is not None:
            report(Progress(stage="track", message=f"tracking stopped: {self.failure}"))

    def abandon(self) -> None:
        """Close the entry as failed."""
        if self._client is not None:
            self._attempt(lambda: self._close({}, "FAILED"))

    def _open(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        for key, value in _ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        uri = self._section.uri or f"sqlite:///{quote(str((self._runs / 'mlflow.db').resolve()))}"
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(self._section.experiment)
        identity = experiment.experiment_id if experiment is not None else self._create_experiment(client)
        run = client.create_run(identity, tags={"mlflow.runName": name, **tags})
        self._client, self.run_id = client, run.info.run_id
        logged = [Param(key, str(value)[:_MAX_PARAM_CHARS]) for key, value in params.items()]
        client.log_batch(self.run_id, params=logged)

    def _create_experiment(self, client: Any) -> str:
        # Without a place of its own, MLflow's file-backed stores put one in the working directory.
        place = None if self._section.uri else (self._runs / "mlflow-artifacts").resolve().as_uri()
        identity: str = client.create_experiment(self._section.experiment, artifact_location=place)
        return identity

    def _log(self, values: Mapping[str, float], step: int) -> None:
        if self._client is None:
            return

        def send() -> None:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            self._client.log_batch(
                self.run_id, metrics=[Metric(key, float(value), now, step) for key, value in values.items()]
            )

        self._attempt(send)

    def _close(self, tags: Mapping[str, str], status: str) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        self._client.set_terminated(self.run_id, status)

    def _attempt(self, action: Callable[[], None]) -> None:
        if self.failure is not None:
            return
        try:
            with warnings.catch_warnings():
                # MLflow and its database layer warn of each other's deprecations.
                warnings.simplefilter("ignore")
                action()
        except ImportError as error:
            self._stop(f"MLflow is not installed ({error}); install edgewise-trainer's dependencies")
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises must not lose a run
            self._stop(f"{type(error).__name__}: {str(error)[:500]}")

    def _stop(self, reason: str) -> None:
        self._client = None
        self.failure = reason
        _log.warning("tracking stopped; the run goes on: %s", reason)
