"""`run.json`: what a run is, what it reached, and the digest of every file beside it.

Nothing in it names a path or a time, so that equal runs can be seen to be equal.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final

import msgspec
from edgewise_protocol.errors import UnsupportedVersionError
from edgewise_protocol.manifest import Name, Sha256, TensorSpec, check_major
from msgspec import Meta

from edgewise_trainer.errors import RunError
from edgewise_trainer.gate import Gate

RECORD_FILE: Final = "run.json"
SPEC_VERSION: Final = "1.0"
MAX_RECORD_BYTES: Final = 1 << 20
MAX_FILES: Final = 64
MAX_CLASSES: Final = 200

RelativeName = Annotated[
    str, Meta(pattern=r"^(?:[A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*$(?!\n)", max_length=200)
]


class DataRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A data set by name and content. A path among the options is cut to its file's name."""

    name: str
    options: dict[str, Any]
    fingerprint: Sha256
    sizes: dict[str, int]


class EvaluationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The held-out evaluation in full: `per_class` by label, `confusion[true][predicted]`.

    Both are empty above `MAX_CLASSES` classes, where they would outgrow the record.
    """

    per_class: dict[str, dict[str, float]]
    confusion: tuple[tuple[int, ...], ...]


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `run.json`."""

    id: Name = msgspec.field(name="run")
    """Derived from configuration, data, weights and parent: equal runs have equal ids."""
    model: Name
    task: str
    labels: tuple[str, ...]
    input: TensorSpec
    output: TensorSpec
    seed: int
    data: DataRecord
    metrics: dict[str, float]
    """On `data/heldout.safetensors`: `accuracy`, `loss`; others are named for what they measure."""
    gate: Gate
    config_sha256: Sha256
    weights_sha256: Sha256
    files: Annotated[dict[RelativeName, Sha256], Meta(max_length=MAX_FILES)]
    evaluation: EvaluationRecord
    domain: DataRecord | None = None
    """The devices' domain, which federated aggregates are judged on."""
    parent: Name | None = None
    """Id of the run that a federated result came from."""
    mlflow_run_id: str | None = None
    trainer: dict[str, str] = {}
    """Versions of the packages that the result depends on."""
    spec_version: str = SPEC_VERSION


def run_id(model: str, *parts: str | None) -> str:
    """The id of a run: the model's name and a digest of what the run consists of."""
    content = msgspec.json.encode([model, *parts])
    return f"{model[:40]}-{hashlib.sha256(content).hexdigest()[:16]}"


def encode_record(record: RunRecord) -> bytes:
    """JSON with sorted keys."""
    return msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=1) + b"\n"


def decode_record(data: bytes) -> RunRecord:
    """Parse `run.json`.

    Raises:
        RunError: it is too long, not valid, or of an unknown major version.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise RunError(f"{RECORD_FILE} has {len(data)} bytes; at most {MAX_RECORD_BYTES} are allowed")
    try:
        record = msgspec.json.decode(data, type=RunRecord)
        check_major(record.spec_version, SPEC_VERSION)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, UnsupportedVersionError) as error:
        raise RunError(f"{RECORD_FILE} is not valid: {error}") from error
    return record
