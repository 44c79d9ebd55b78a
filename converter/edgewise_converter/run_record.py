"""`run.json`: what a training run says of itself, as far as conversion reads it.

The trainer writes it; unknown fields are accepted, an unknown major version is refused.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from edgewise_protocol.errors import UnsupportedVersionError
from edgewise_protocol.manifest import Name, Sha256, TensorSpec, check_major
from msgspec import Meta

from edgewise_converter.errors import RunError, RunVersionError

MAX_RECORD_BYTES: Final = 1 << 20
MAX_VERSION: Final = 2**31 - 1
RUN_FILE: Final = "run.json"
MODEL_FILE: Final = "model.pt2"
WEIGHTS_FILE: Final = "weights.safetensors"
REFERENCE_FILE: Final = "data/reference.safetensors"
HELDOUT_FILE: Final = "data/heldout.safetensors"
STEP_FILE: Final = "training/step.onnx"
TRAINING_FILE: Final = "training/training.json"

RelativeName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*){0,4}$(?!\n)")]
"""Names below the run directory; the pattern leaves no way out of it."""


class DataRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The data set of a run."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    fingerprint: Sha256
    """Over the arrays' canonical bytes."""


class GateCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One bound of the acceptance gate."""

    name: str
    value: float
    bound: float
    passed: bool


class GateRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The acceptance gate's verdict."""

    passed: bool
    checks: Annotated[tuple[GateCheck, ...], Meta(max_length=100)] = ()


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A training run."""

    spec_version: str
    run: Name
    model: Name
    task: Literal["classification", "regression", "embedding", "other"] = "other"
    labels: Annotated[tuple[str, ...], Meta(max_length=10_000)] = ()
    input: TensorSpec
    output: TensorSpec
    seed: int = 0
    data: DataRecord
    gate: GateRecord
    config_sha256: Sha256
    parent: str | None = None
    files: Annotated[dict[RelativeName, Sha256], Meta(min_length=1, max_length=100)]


_decoder = msgspec.json.Decoder(RunRecord)


def decode_record(data: bytes) -> RunRecord:
    """Parse `run.json`.

    Raises:
        RunError: it is too long, malformed, or describes a model that cannot be converted.
        RunVersionError: an unknown major version.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise RunError(f"{RUN_FILE} has {len(data)} bytes; at most {MAX_RECORD_BYTES} are allowed")
    try:
        record = _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RunError(f"{RUN_FILE} is not valid: {error}") from error
    try:
        check_major(record.spec_version)
    except UnsupportedVersionError as error:
        raise RunVersionError(f"{RUN_FILE}: {error}") from error
    for spec in (record.input, record.output):
        if spec.dtype != "FP32" or len(spec.shape) < 2 or spec.shape[0] != -1 or min(spec.shape[1:]) < 1:
            raise RunError(
                f"{RUN_FILE}: {spec.name!r} is {spec.dtype} {list(spec.shape)}; models with a free batch size and "
                "otherwise fixed FP32 shapes can be converted"
            )
    if record.task == "classification" and record.labels and len(record.labels) != record.output.shape[-1]:
        raise RunError(f"{RUN_FILE} has {len(record.labels)} labels for {record.output.shape[-1]} classes")
    return record
