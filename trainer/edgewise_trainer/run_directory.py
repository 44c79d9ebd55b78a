"""The run directory on disk: written whole or not at all, read only when every digest holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from edgewise_trainer.durable import staged_directory, write_file
from edgewise_trainer.errors import RunError, RunTamperedError
from edgewise_trainer.record import MAX_RECORD_BYTES, RECORD_FILE, RunRecord, decode_record, encode_record

MODEL_FILE: Final = "model.pt2"
WEIGHTS_FILE: Final = "weights.safetensors"
REFERENCE_FILE: Final = "data/reference.safetensors"
HELDOUT_FILE: Final = "data/heldout.safetensors"
STEP_FILE: Final = "training/step.onnx"
TRAINING_FILE: Final = "training/training.json"


def write_run(
    target: Path, files: Mapping[str, bytes], make_record: Callable[[dict[str, str]], RunRecord]
) -> RunRecord:
    """Write a run directory that appears under its name only when it is complete.

    Args:
        target: the run directory; it must not exist yet.
        files: content by relative name.
        make_record: the record for the files' digests.

    Raises:
        RunExistsError, RunError: see `durable`.
    """
    with staged_directory(target) as stage:
        for name, data in files.items():
            path = stage / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RunError(f"{name} cannot be written: {error}") from error
            write_file(path, data)
        record = make_record({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
        write_file(stage / RECORD_FILE, encode_record(record))
    return record


def load_run(directory: Path) -> RunRecord:
    """Read a run's record and verify every file of the directory against it.

    Raises:
        RunError: there is no valid `run.json`.
        RunTamperedError: a file is missing, unlisted, or not what was written.
    """
    try:
        with (directory / RECORD_FILE).open("rb") as stream:
            data = stream.read(MAX_RECORD_BYTES + 1)
    except OSError as error:
        raise RunError(f"{directory} is not a run directory: {error}") from error
    record = decode_record(data)
    found = {
        str(path.relative_to(directory).as_posix())
        for path in directory.rglob("*")
        if path.is_symlink() or path.is_file()
    }
    unlisted = sorted(found - record.files.keys() - {RECORD_FILE})
    if unlisted:
        raise RunTamperedError(f"the run directory holds {unlisted[0]!r}, which {RECORD_FILE} does not list")
    for name, digest in record.files.items():
        path = directory / name
        if path.is_symlink() or not path.is_file():
            raise RunTamperedError(f"the run directory lacks {name!r}")
        if _sha256(path) != digest:
            raise RunTamperedError(f"{name!r} does not have the digest that {RECORD_FILE} says")
    return record


def read_verified(directory: Path, record: RunRecord, name: str) -> bytes:
    """One file's bytes, checked again as they are read.

    Raises:
        RunError: the run has no such file.
        RunTamperedError: it changed.
    """
    if name not in record.files:
        raise RunError(f"the run {record.id} has no {name!r}")
    try:
        data = (directory / name).read_bytes()
    except OSError as error:
        raise RunTamperedError(f"{name!r} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != record.files[name]:
        raise RunTamperedError(f"{name!r} does not have the digest that {RECORD_FILE} says")
    return data


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise RunTamperedError(f"{path.name!r} cannot be read: {error}") from error
