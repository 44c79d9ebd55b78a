"""What the agent asks of its training process, and what comes back: two JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from edgewise_agent.learning.errors import TrainingFailedError
from edgewise_agent.learning.round import Update

JOB_FILE: Final = "job.json"
RESULT_FILE: Final = "result.json"
UPDATE_FILE: Final = "update.safetensors"
_MAX_BYTES: Final = 1024 * 1024


class TrainJob(msgspec.Struct, frozen=True, kw_only=True):
    """One training. Paths are absolute, times in seconds, memory in MiB."""

    bundle: str
    weights: str
    data: str
    model: str
    epochs: int
    batch_size: int
    lr: float
    mu: float
    max_steps: int
    seed: int
    device_id: str
    """Goes into the shuffling's seed, so that devices with equal data differ."""
    cpu_s: int
    memory_mib: int
    nice: int


class TrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """Either an update, or why there is none."""

    update: Update | None = None
    error_code: str = ""
    error: str = ""


def read_job(path: Path) -> TrainJob:
    """Parse a job file."""
    return msgspec.json.decode(path.read_bytes(), type=TrainJob)


def read_result(folder: Path) -> TrainResult:
    """Parse a result; `TrainingFailedError` if there is none."""
    try:
        data = (folder / RESULT_FILE).read_bytes()
        if len(data) > _MAX_BYTES:
            raise ValueError("it is too long")
        return msgspec.json.decode(data, type=TrainResult)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise TrainingFailedError(f"the training process left no result: {error}") from error
