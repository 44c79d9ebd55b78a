"""What is timed: a bundle with its golden inputs, or a bare model file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from edgewise_profiles import catalogue
from edgewise_profiles.errors import UnknownProfileError
from edgewise_profiles.schema import Profile
from edgewise_protocol.bounds import MAX_BUNDLE_BYTES
from edgewise_protocol.bundle import SUFFIX, BundleReader
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.manifest import Manifest
from safetensors.numpy import save

from edgewise_converter import golden
from edgewise_converter.benching.child import Task
from edgewise_converter.engines.named import Tensors
from edgewise_converter.errors import ModelFileError, ProofMissingError, WriteError
from edgewise_converter.importing.model_file import read_model

MODEL: Final = "model"
_FLOATS: Final = ("FP16", "FP32", "FP64")
_MACHINE_CODE: Final = frozenset({"iree", "c99", "vmfb"})
"""Engines and formats whose models are machine code here, or are compiled to it."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One of those that are timed.

    Attributes:
        latency_budget_ms: median of one request; 0 for none.
        precision: as a bundle says; empty for a bare file.
    """

    name: str
    task: Task
    size_bytes: int
    profile: Profile | None
    latency_budget_ms: float
    precision: str


def prepare(
    path: Path,
    folder: Path,
    profile: Profile | None,
    *,
    sample: Path | None,
    threads: int,
    machine_code: bool = False,
) -> Subject:
    """Lay a bundle's or file's model and inputs into a folder.

    Raises:
        ProofMissingError: it is machine code, and `machine_code` is not set.
        ModelFileError: it cannot be read, or is of no known kind.
        ProtocolError: the bundle is damaged.
        WriteError: the folder cannot be written.
    """
    if path.suffix == SUFFIX:
        return _bundle(path, folder, profile, threads, machine_code)
    data, format_ = read_model(path)
    task = Task(
        model=str(_write(folder, MODEL, data)),
        format=format_,
        threads=threads,
        sample=str(sample.absolute()) if sample else "",
    )
    return Subject(path.name, task, len(data), profile, profile.budget.latency_ms if profile else 0.0, "")


def _bundle(path: Path, folder: Path, wanted: Profile | None, threads: int, machine_code: bool) -> Subject:
    manifest, model, inputs = read_bundle(path)
    if _MACHINE_CODE & {manifest.requires.engine, manifest.format} and not machine_code:
        raise ProofMissingError(
            f"{path.name} is machine code, which would run as you, with all that you may do here; if you trust whoever "
            "made it, add --run-machine-code"
        )
    profile = wanted or _known(manifest.profile)
    task = Task(
        model=str(_write(folder, manifest.model_file, model)),
        format=manifest.format,
        engine=manifest.requires.engine,  # type: ignore[arg-type]  # decoded again, and so checked, in the process
        threads=threads,
        integers=tuple(spec.name for spec in manifest.inputs if spec.dtype not in _FLOATS),
        precision=manifest.precision,  # type: ignore[arg-type]  # as above
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        feeds=str(_write(folder, "feeds.safetensors", save(inputs))),
    )
    # A bundle's own budget is the one that was signed; another profile is asked about with its own.
    own = manifest.budget.latency_ms if wanted is None or wanted.id == manifest.profile else 0.0
    budget = own or (profile.budget.latency_ms if profile else 0.0)
    return Subject(path.name, task, len(model), profile, budget, manifest.precision)


def read_bundle(path: Path) -> tuple[Manifest, bytes, Tensors]:
    """A bundle's manifest, its model file, and its golden inputs for one request.

    Raises:
        ModelFileError: it cannot be read, or is no model to run.
        ProtocolError: it is damaged.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size > MAX_BUNDLE_BYTES:
                raise ModelFileError(f"{path.name} is longer than a bundle may be")
            reader = BundleReader(file)
            manifest = reader.manifest
            if manifest.golden is None or manifest.kind != "inference":
                raise ModelFileError(f"{path.name} is a bundle of kind {manifest.kind}: there is no model to time")
            model, held = reader.read(manifest.model_file), reader.read(manifest.golden.file)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except ProtocolError as error:
        raise type(error)(f"{path.name}: {error}") from error
    try:
        inputs, _ = golden.decode(held)
    except Exception as error:
        raise ModelFileError(f"{path.name}: its golden inputs cannot be read: {str(error)[:200]}") from error
    batch = max((spec.shape[0] for spec in manifest.inputs if spec.shape), default=-1)
    names = {spec.name for spec in manifest.inputs}
    if not names <= inputs.keys():
        raise ModelFileError(f"{path.name}: its golden inputs lack {', '.join(sorted(names - inputs.keys()))}")
    return manifest, model, {n: np.ascontiguousarray(a[: max(batch, 1)]) for n, a in inputs.items() if n in names}


def _known(name: str) -> Profile | None:
    try:
        return catalogue.load(name)
    except UnknownProfileError:
        return None


def _write(folder: Path, name: str, data: bytes) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    except OSError as error:
        raise WriteError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder / name
