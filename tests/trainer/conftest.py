"""Fixtures of the trainer's tests: one whole run of the example, shared, and small configurations."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from edgewise_trainer.config import TrainConfig, load_config, parse_config
from edgewise_trainer.progress import Progress
from edgewise_trainer.record import RunRecord
from edgewise_trainer.run import train

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits" / "digits.toml"

SMALL = """
[model]
name = "small"
options = { width = 4 }
[data]
options = { seed = 3, test_fraction = 0.5 }
[train]
epochs = 1
seed = 5
[tracking]
enabled = false
"""


@dataclass(frozen=True)
class WholeRun:
    """The example's run: its directory, its record, and what it reported."""

    config: TrainConfig
    directory: Path
    record: RunRecord
    reports: tuple[Progress, ...]


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    config = load_config(EXAMPLE)
    directory = tmp_path_factory.mktemp("runs") / "base"
    reports: list[Progress] = []
    record = train(config, directory, reports.append)
    return WholeRun(config=config, directory=directory, record=record, reports=tuple(reports))


@pytest.fixture
def run_copy(whole_run: WholeRun, tmp_path: Path) -> Path:
    """A copy of the run directory that a test may damage."""
    return Path(shutil.copytree(whole_run.directory, tmp_path / "copy"))


@pytest.fixture
def small_config() -> Callable[..., TrainConfig]:
    """The small configuration with other fields in its [train] section."""

    def make(**changes: object) -> TrainConfig:
        config = parse_config(SMALL)
        return msgspec.structs.replace(config, train=msgspec.structs.replace(config.train, **changes))

    return make
