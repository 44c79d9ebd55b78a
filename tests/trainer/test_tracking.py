"""Danger: a tracker that is down, slow or absent loses a finished run, or reports to a stranger."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from edgewise_trainer.config import TrackingSection, TrainConfig
from edgewise_trainer.progress import Progress
from edgewise_trainer.run import load_run, train


def rows(database: Path, query: str, *arguments: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(database)
    try:
        return connection.execute(query, arguments).fetchall()
    finally:
        connection.close()


def test_parameters_metrics_and_tags_are_in_the_local_database(whole_run: Any) -> None:
    database, run = whole_run.directory.parent / "mlflow.db", whole_run.record.mlflow_run_id
    assert rows(database, "select status from runs where run_uuid = ?", run) == [("FINISHED",)]
    params = dict(rows(database, "select key, value from params where run_uuid = ?", run))
    assert params["train.epochs"] == str(whole_run.config.train.epochs)
    assert params["config_sha256"] == whole_run.record.config_sha256
    losses = rows(
        database,
        "select step, value from metrics where run_uuid = ? and key = 'train_loss' and step > 0 order by step",
        run,
    )
    expected = [(p.epoch, p.loss) for p in whole_run.reports if p.stage == "train"]
    assert losses == [(step, pytest.approx(loss)) for step, loss in expected]
    tags = dict(rows(database, "select key, value from tags where run_uuid = ?", run))
    assert tags["edgewise.run"] == whole_run.record.id
    assert tags["edgewise.gate"] == "passed"


def test_nothing_is_reported_to_the_makers_of_the_tracker(whole_run: Any) -> None:
    assert whole_run.record.mlflow_run_id
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize("uri", ["sqlite:////proc/nowhere/mlflow.db", "nonsense://x"])
def test_a_broken_tracker_does_not_lose_the_run(
    small_config: Callable[..., TrainConfig], tmp_path: Path, uri: str
) -> None:
    config = msgspec.structs.replace(small_config(), tracking=TrackingSection(uri=uri))
    reports: list[Progress] = []
    record = train(config, tmp_path / "run", reports.append)
    assert load_run(tmp_path / "run") == record
    assert record.mlflow_run_id is None
    assert reports[-1].stage == "track"
    assert "tracking stopped" in reports[-1].message


def test_the_tracker_is_not_imported_before_it_is_needed() -> None:
    late = ("mlflow", "matplotlib", "onnxruntime")
    script = f"import sys, edgewise_trainer.api; print([m for m in {late} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
