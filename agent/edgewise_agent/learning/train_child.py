"""The training process: `python -m edgewise_agent.learning.train_child FOLDER`.

It takes `job.json` in the folder and leaves `update.safetensors` and `result.json` there. It
runs at low priority, within limits of processor time and memory that it sets itself, and
ends when its standard input is closed, that is, with the agent.
"""

from __future__ import annotations

import hashlib
import os
import resource
import sys
import threading
from pathlib import Path
from typing import Final

import msgspec
from edgewise_protocol.bounds import MAX_UPDATE_BYTES, MIB
from edgewise_protocol.bundle import BundleReader
from edgewise_protocol.errors import ProtocolError
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save

from edgewise_agent.durable import write_atomic
from edgewise_agent.errors import AgentError
from edgewise_agent.learning.errors import LocalDataError, TrainingBundleError
from edgewise_agent.learning.job import JOB_FILE, RESULT_FILE, UPDATE_FILE, TrainJob, TrainResult, read_job
from edgewise_agent.learning.round import Update

ORPHANED: Final = 3
"""Exit status of a process whose agent has gone."""
_FILES: Final = 256


def main(folder: Path) -> int:
    """Run one job; 0 where a result was left, good or bad."""
    job = read_job(folder / JOB_FILE)
    _limit(job)
    threading.Thread(target=_end_with_agent, daemon=True).start()
    try:
        result = TrainResult(update=_train(job, folder))
    except AgentError as error:
        result = TrainResult(error_code=error.code, error=str(error)[:1_000])
    except ProtocolError as error:
        result = TrainResult(error_code=error.code, error=str(error)[:1_000])
    except MemoryError:
        result = TrainResult(error_code="round-training", error=f"training needs more than {job.memory_mib} MiB")
    write_atomic(folder / RESULT_FILE, msgspec.json.encode(result))
    return 0


def _train(job: TrainJob, folder: Path) -> Update:
    # onnxruntime is imported within the limits.
    from edgewise_agent.learning.training import Course, StepGraph, check_data, seed_of, train

    with Path(job.bundle).open("rb") as file:
        bundle = BundleReader(file)
        spec = bundle.manifest.training
        if spec is None or bundle.manifest.model != job.model:
            raise TrainingBundleError(
                f"the offer trains {job.model}; its bundle is of kind {bundle.manifest.kind}, "
                f"for {bundle.manifest.model}"
            )
        step = bundle.read(spec.step_file)
    try:
        weights = load(Path(job.weights).read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise TrainingBundleError(f"the round's weights cannot be read: {error}") from error
    try:
        data = load_file(job.data)
        x, y = data["x"], data["y"]
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise LocalDataError(f"the local data cannot be read: {error}") from error
    x, y = check_data(spec, x, y)
    course = Course(job.epochs, job.batch_size, job.lr, job.mu, job.max_steps, seed_of(job.seed, job.device_id))
    found = train(StepGraph(step, spec, weights), x, y, course)
    update = save(found.weights)
    if len(update) > MAX_UPDATE_BYTES:
        raise TrainingBundleError(f"the update has {len(update)} bytes; at most {MAX_UPDATE_BYTES} are allowed")
    write_atomic(folder / UPDATE_FILE, update, mode=0o600)
    return Update(length=len(update), sha256=hashlib.sha256(update).hexdigest(), samples=len(x), metrics=found.metrics)


def _limit(job: TrainJob) -> None:
    os.nice(job.nice)
    memory = job.memory_mib * MIB
    for what, most in (
        (resource.RLIMIT_CPU, job.cpu_s),
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _FILES),
        (resource.RLIMIT_FSIZE, 2 * MAX_UPDATE_BYTES),
    ):
        _, hard = resource.getrlimit(what)
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (limit, limit))


def _end_with_agent() -> None:
    while os.read(0, 4096):
        continue
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
