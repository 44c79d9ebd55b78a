"""Reading a run directory: every file that is used has the digest that `run.json` names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from edgewise_protocol.bounds import MAX_BUNDLE_BYTES, MIB
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from edgewise_converter.errors import GateError, RunError, SamplesError
from edgewise_converter.run_record import (
    HELDOUT_FILE,
    MODEL_FILE,
    REFERENCE_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    RunRecord,
    decode_record,
)

REQUIRED: Final = (MODEL_FILE, WEIGHTS_FILE, REFERENCE_FILE, HELDOUT_FILE)
_READ: Final = MIB


@dataclass(frozen=True, slots=True)
class Samples:
    """Labelled samples: `x` (N, ...) float32, `y` (N,) int64 or (N, ...) float32."""

    x: NDArray[np.float32]
    y: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory whose files were found whole."""

    folder: Path
    record: RunRecord

    def read(self, name: str) -> bytes:
        """A file's bytes, its digest checked.

        Raises:
            RunError: the run has no such file, or it was changed.
        """
        wanted = self.record.files.get(name)
        if wanted is None:
            raise RunError(f"the run {self.record.run} holds no {name}")
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            raise RunError(f"{name} of the run {self.record.run} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != wanted:
            raise RunError(f"{name} of the run {self.record.run} is damaged: its digest is not the recorded one")
        return data

    def has(self, name: str) -> bool:
        """Whether the run holds a file of that name."""
        return name in self.record.files

    @property
    def source_sha256(self) -> str:
        """Digest of the exported model that everything else is made from."""
        return self.record.files[MODEL_FILE]

    def reference(self) -> Samples:
        """Samples of the training distribution: for calibration and for the baseline."""
        return self._samples(REFERENCE_FILE)

    def heldout(self) -> Samples:
        """Samples that training never saw: for accuracy."""
        return self._samples(HELDOUT_FILE)

    def _samples(self, name: str) -> Samples:
        try:
            arrays = load_safetensors(self.read(name))
        except (SafetensorError, ValueError, KeyError) as error:
            raise SamplesError(f"{name} is not a safetensors file: {error}") from error
        if "x" not in arrays or "y" not in arrays:
            raise SamplesError(f"{name} holds {', '.join(sorted(arrays)) or 'nothing'}; x and y are needed")
        return check_samples(Samples(arrays["x"], arrays["y"]), self.record, name)


def check_samples(samples: Samples, record: RunRecord, name: str) -> Samples:
    """Hold samples against the model's input.

    Raises:
        SamplesError: wrong type or shape, none at all, NaN or infinity, or labels out of range.
    """
    x, y = samples.x, samples.y
    wanted = record.input.shape[1:]
    if x.dtype != np.float32 or x.shape[1:] != wanted:
        raise SamplesError(
            f"{name}: x is {x.dtype} {list(x.shape)}; float32 [N, {', '.join(map(str, wanted))}] is needed"
        )
    if len(x) == 0 or len(x) != len(y):
        raise SamplesError(f"{name} holds {len(x)} inputs and {len(y)} labels; equally many are needed, at least one")
    bad = int(np.count_nonzero(~np.isfinite(x)))
    if bad:
        raise SamplesError(f"{name}: x holds {bad} values that are NaN or infinite")
    if record.task == "classification":
        classes = record.output.shape[-1]
        if y.dtype.kind not in "iu" or y.ndim != 1 or int(y.min()) < 0 or int(y.max()) >= classes:
            raise SamplesError(f"{name}: y must hold one class index in [0, {classes}) a sample")
    return samples


def open_run(folder: Path) -> Run:
    """Open a run directory and check every file that it names.

    Raises:
        RunError: it is incomplete or damaged.
        GateError: the run did not pass its acceptance gate.
        RunVersionError: its record is of an unknown major version.
    """
    try:
        record = decode_record((folder / RUN_FILE).read_bytes())
    except OSError as error:
        raise RunError(f"{folder.name} is not a run directory: {RUN_FILE} cannot be read: {error.strerror}") from error
    missing = [name for name in REQUIRED if name not in record.files]
    if missing:
        raise RunError(f"the run {record.run} names no {', '.join(missing)}")
    for name, wanted in record.files.items():
        _check_file(folder / name, name, wanted)
    if not record.gate.passed:
        failed = "; ".join(f"{c.name} is {c.value:g}, bound {c.bound:g}" for c in record.gate.checks if not c.passed)
        raise GateError(f"the run {record.run} did not pass its gate{': ' + failed if failed else ''}")
    return Run(folder, record)


def _check_file(path: Path, name: str, wanted: str) -> None:
    digest = hashlib.sha256()
    try:
        if path.stat().st_size > MAX_BUNDLE_BYTES:
            raise RunError(f"{name} is larger than {MAX_BUNDLE_BYTES} bytes")
        with path.open("rb") as source:
            while piece := source.read(_READ):
                digest.update(piece)
    except OSError as error:
        raise RunError(f"{name} cannot be read: {error.strerror}") from error
    if digest.hexdigest() != wanted:
        raise RunError(f"{name} is damaged: its digest is not the one that {RUN_FILE} names")
