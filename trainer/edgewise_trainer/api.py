"""What the command line calls: files in, a run directory and its record out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from edgewise_trainer.config import load_config
from edgewise_trainer.errors import WeightsError
from edgewise_trainer.federated_run import from_weights
from edgewise_trainer.progress import ProgressCallback
from edgewise_trainer.record import RunRecord
from edgewise_trainer.training_run import train
from edgewise_trainer.weights import decode

MAX_WEIGHTS_BYTES: Final = 2 << 30


def train_from_file(config_path: Path, out_dir: Path, progress: ProgressCallback | None = None) -> RunRecord:
    """Train as the TOML file says; see `training_run.train`."""
    return train(load_config(config_path), out_dir, progress)


def promote_weights(
    config_path: Path,
    weights: Path | Mapping[str, NDArray[Any]],
    parent_run: Path,
    out_dir: Path,
    progress: ProgressCallback | None = None,
) -> RunRecord:
    """Make a run of federated weights, a safetensors file or arrays by name; see `federated_run.from_weights`."""
    arrays = _read(weights) if isinstance(weights, Path) else weights
    return from_weights(load_config(config_path), arrays, parent_run, out_dir, progress)


def _read(path: Path) -> Mapping[str, NDArray[Any]]:
    try:
        if path.stat().st_size > MAX_WEIGHTS_BYTES:
            raise WeightsError(f"{path.name} has more than {MAX_WEIGHTS_BYTES} bytes")
        return decode(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"the weights {path} cannot be read: {error}") from error
