"""The training bundle: the training-step graph and the weights that it starts from.

The trainer exports and gates the graph; here it is held against its specification, and packed.
It fits every device that has onnxruntime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from edgewise_protocol.bundle import SUFFIX, file_entry
from edgewise_protocol.manifest import SPEC_VERSION, Manifest, Requirements, TensorSpec, TrainingSpec
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from edgewise_converter import provenance
from edgewise_converter.bundling import Contents, lineage_of
from edgewise_converter.errors import ConverterError, RunError
from edgewise_converter.files import folder_made
from edgewise_converter.libraries import need
from edgewise_converter.run_directory import Run, open_run
from edgewise_converter.run_record import MAX_VERSION, STEP_FILE, TRAINING_FILE, WEIGHTS_FILE
from edgewise_converter.writing import write_proven

PROFILE: Final = "any"
REQUIRES: Final = Requirements(engine="onnxruntime", engine_min="1.22", engine_below="2")
_NUMPY: Final = {"FP32": "float32", "FP64": "float64", "FP16": "float16", "INT64": "int64", "INT32": "int32"}


def build(run_dir: Path, out_dir: Path, version: int) -> Path:
    """Write `<model>-<version>-training.ewb`; equal runs give equal bytes.

    Args:
        run_dir: a run directory with a training step.
        out_dir: made if it is not there.
        version: of the training bundle, from 1.

    Raises:
        RunError, GateError: the run is damaged, holds no training step, or one that differs from its specification.
        WriteError: the disk refuses, or a bound of the bundle's format is exceeded.
        MissingExtraError: onnx is not installed.
    """
    if not 1 <= version <= MAX_VERSION:
        raise ConverterError(f"a version is between 1 and {MAX_VERSION}; {version} was given")
    run = open_run(run_dir)
    spec = _read_spec(run)
    step, weights = run.read(STEP_FILE), run.read(WEIGHTS_FILE)
    check_weights(weights, spec)
    check_graph(step, spec)
    lineage = lineage_of(run)
    files = {spec.step_file: step, spec.initial_file: weights}
    files[provenance.PROVENANCE_FILE] = provenance.statement(
        files, {**lineage, "kind": "training", "model": run.record.model, "version": version}
    )
    manifest = Manifest(
        spec_version=SPEC_VERSION,
        kind="training",
        model=run.record.model,
        version=version,
        profile=PROFILE,
        requires=REQUIRES,
        files=tuple(file_entry(name, data) for name, data in sorted(files.items())),
        task=run.record.task,
        labels=run.record.labels,
        provenance_file=provenance.PROVENANCE_FILE,
        training=spec,
        lineage=lineage,
    )
    path = out_dir / f"{run.record.model}-{version}-training{SUFFIX}"
    with folder_made(out_dir):
        write_proven(path, Contents(manifest, files))
    return path


def _read_spec(run: Run) -> TrainingSpec:
    if not run.has(TRAINING_FILE) or not run.has(STEP_FILE):
        raise RunError(f"the run {run.record.run} holds no training step: train it with federation enabled")
    try:
        spec = msgspec.json.decode(run.read(TRAINING_FILE), type=TrainingSpec)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RunError(f"{TRAINING_FILE} is not valid: {error}") from error
    if len({spec.step_file, spec.initial_file, provenance.PROVENANCE_FILE}) != 3:
        raise RunError(f"{TRAINING_FILE} gives two files of the bundle one name")
    return spec


def check_weights(data: bytes, spec: TrainingSpec) -> None:
    """Raise `RunError` unless the weights are those that the specification names, in type and shape."""
    try:
        arrays = load_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"{WEIGHTS_FILE} is not a safetensors file: {error}") from error
    wanted = {f"p.{s.name}": s for s in spec.params} | {f"b.{s.name}": s for s in spec.buffers}
    if set(arrays) != set(wanted):
        strange = sorted(set(arrays) ^ set(wanted))
        raise RunError(
            f"{WEIGHTS_FILE} and {TRAINING_FILE} do not name the same tensors: {strange[0]!r} is in one only"
        )
    for name, array in arrays.items():
        _check_array(name, array, wanted[name])


def _check_array(name: str, array: np.ndarray[Any, Any], spec: TensorSpec) -> None:
    if array.shape != spec.shape or array.dtype.name != _NUMPY.get(spec.dtype):
        raise RunError(f"{name} is {array.dtype} {list(array.shape)}; the record says {spec.dtype} {list(spec.shape)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RunError(f"{name} holds values that are NaN or infinite")


def check_graph(data: bytes, spec: TrainingSpec) -> None:
    """Raise `RunError` unless the graph has the specification's inputs and outputs, and standard operators only."""
    onnx = need("onnx")
    protobuf = need("google.protobuf.message")
    try:
        graph = onnx.load_from_string(data).graph
    except protobuf.DecodeError as error:
        raise RunError(f"{STEP_FILE} is not an ONNX file: {error}") from error
    params, buffers = [s.name for s in spec.params], [s.name for s in spec.buffers]
    inputs = {spec.x.name, spec.y.name, "lr", "mu", *(f"p.{n}" for n in params), *(f"b.{n}" for n in buffers)}
    outputs = {"loss", "correct", *(f"new_p.{n}" for n in params), *(f"new_b.{n}" for n in buffers)}
    missing = sorted(inputs - {i.name for i in graph.input}) + sorted(outputs - {o.name for o in graph.output})
    if missing:
        raise RunError(f"{STEP_FILE} has no input or output {missing[0]!r}")
    foreign = [n for n in graph.node if n.domain not in ("", "ai.onnx") or n.op_type.endswith("_backward")]
    if foreign:
        raise RunError(f"{STEP_FILE} uses {foreign[0].domain}.{foreign[0].op_type}, which is not standard ONNX")
