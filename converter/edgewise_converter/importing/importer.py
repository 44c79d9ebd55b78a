"""A finished model file and a sample of its inputs in, judged bundles out, one a profile.

The file goes into the bundle as it is. What a training run would bring besides (golden answers,
the baseline of drift, measured accuracy) comes from the sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from edgewise_profiles.schema import Format, Profile, Target
from edgewise_protocol.bundle import SUFFIX
from edgewise_protocol.manifest import Golden
from edgewise_protocol.names import check_name
from numpy.typing import NDArray

from edgewise_converter import provenance
from edgewise_converter.baseline import make_baseline
from edgewise_converter.bundling import Ready, assemble
from edgewise_converter.checks import Check, misses, passes
from edgewise_converter.engines.named import NamedModel, Tensors
from edgewise_converter.engines.named_apart import NamedApart
from edgewise_converter.engines.named_tflite import NamedTflite
from edgewise_converter.engines.opening import open_named
from edgewise_converter.errors import ConverterError, SampleError
from edgewise_converter.evidence import golden_of_batch, golden_of_request, numerics_of
from edgewise_converter.files import folder_made, remove, write_atomically
from edgewise_converter.hardware import Host, is_profiles_hardware, read_host
from edgewise_converter.importing.judgement import budget_checks, check_answers, target_for
from edgewise_converter.importing.model_file import read_model
from edgewise_converter.importing.samples import Sample, integers_of, match, read_arrays
from edgewise_converter.metrics.comparison import top_classes
from edgewise_converter.metrics.labelled import border
from edgewise_converter.passes.artifact import Artifact
from edgewise_converter.run_record import MAX_VERSION
from edgewise_converter.writing import write_proven

FEW_SAMPLES: Final = 100
"""Fewer make a baseline that drift can hardly be told from."""
_MAX_PROFILES: Final = 100
_MAX_LABELS: Final = 10_000
Progress = Callable[[str, float], None]


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What the file does not say of itself."""

    model: str
    version: int
    task: str = "other"
    """`classification`, `regression`, `embedding` or `other`."""
    labels: tuple[str, ...] = ()
    origin: str = ""
    """Where the file comes from, in the publisher's words; it is signed."""


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle from a finished file. `path` is empty where its budget was missed."""

    model: str
    version: int
    profile: str
    format: str
    precision: str
    path: str
    sha256: str
    size_bytes: int
    model_size_bytes: int
    samples: int
    accuracy: float | None
    """Share of right classes, where the sample has labels."""
    latency_ms: float
    latency_binding: bool
    checks: tuple[Check, ...]
    passed: bool
    notes: tuple[str, ...]
    """What the publisher should know."""
    engine: str
    engine_version: str
    host: Host
    created_at: str
    """UTC, ISO 8601."""

    def misses(self) -> tuple[str, ...]:
        """What refuses the bundle."""
        return misses(self.checks)


class _Examined(msgspec.Struct, frozen=True):
    """A file, loaded and tried on the sample."""

    data: bytes
    name: str
    format: Format
    model: NamedModel
    sample: Sample
    golden: bytes
    golden_rule: Golden
    baseline: bytes
    accuracy: float | None
    latency_ms: float
    notes: tuple[str, ...]


def import_model(
    path: Path,
    sample: Path,
    profiles: Sequence[Profile],
    out_dir: Path,
    description: Description,
    progress: Progress | None = None,
) -> list[ImportReport]:
    """Bundle a finished model for several profiles.

    For each that keeps its budget, `<model>-<version>-<profile>.ewb` and a report beside it are written.

    Args:
        path: `.onnx` or `.tflite`.
        sample: `.npz`, `.npy` or `.safetensors` with inputs, see `importing.samples`.
        profiles: at least one.
        out_dir: made if it is not there.
        description: what the file does not say.
        progress: called with what is being done, and the share of the whole that is behind.

    Returns:
        one report a profile, in the same order; `passed` tells whether there is a bundle.

    Raises:
        ModelFileError: the file, or a form that a profile does not allow.
        SampleError: the sample is not one that the model takes, or not answered as expected.
        EngineError: the engine refuses the file, or it answers nothing sensible.
        WriteError, MissingExtraError, ConverterError.
    """
    _check(profiles, description)
    tell = progress or (lambda _text, _fraction: None)
    tell("reading the model", 0.0)
    data, format_ = read_model(path)
    arrays = read_arrays(sample)
    model = open_named(data, format_, integers_of(arrays))
    targets = [target_for(profile, format_, model.precision) for profile in profiles]
    tell("running the sample", 0.2)
    examined = _examine(data, path.name, format_, model, arrays, description)
    reports = []
    with folder_made(out_dir):
        for done, (profile, target) in enumerate(zip(profiles, targets, strict=True)):
            tell(f"bundling for {profile.id}", 0.6 + 0.4 * done / len(profiles))
            reports.append(_bundle(examined, profile, target, out_dir, description))
    tell("done", 1.0)
    return reports


def _check(profiles: Sequence[Profile], description: Description) -> None:
    check_name(description.model, "model")
    if not 1 <= len(profiles) <= _MAX_PROFILES or len({p.id for p in profiles}) != len(profiles):
        raise ConverterError(f"between 1 and {_MAX_PROFILES} different profiles are needed; {len(profiles)} were given")
    if not 1 <= description.version <= MAX_VERSION:
        raise ConverterError(f"a version is between 1 and {MAX_VERSION}; {description.version} was given")
    if len(description.labels) > _MAX_LABELS:
        raise ConverterError(f"{len(description.labels)} labels were given; at most {_MAX_LABELS} are allowed")


def _examine(
    data: bytes, name: str, format_: Format, model: NamedModel, arrays: Tensors, description: Description
) -> _Examined:
    sample = match(arrays, model.inputs, model.outputs, model.batch)
    if isinstance(model, NamedTflite):
        with NamedApart(model, data, integers_of(arrays)) as apart:
            apart.infer(sample.inputs)
    answers = model.infer(sample.inputs)
    check_answers(answers, sample.expected, model.precision)
    x, y = sample.inputs[model.inputs[0].name], answers[model.outputs[0].name]
    if description.labels and description.task == "classification" and len(description.labels) != y.shape[-1]:
        raise SampleError(f"{len(description.labels)} labels were given; the model has {y.shape[-1]} classes")
    notes: list[str] = []
    if model.batch is None:
        notes.append("the tensors have no batch in common: one request is golden, and drift is not watched")
        evidence, baseline = golden_of_request(model, sample.inputs, answers, description.task), b""
    else:
        if len(x) < FEW_SAMPLES:
            notes.append(f"the sample holds {len(x)} inputs; with fewer than {FEW_SAMPLES}, drift can hardly be told")
        evidence = golden_of_batch(model, sample.inputs, answers, description.task)
        baseline = make_baseline(x, y, description.task)
    return _Examined(
        data,
        name,
        format_,
        model,
        sample,
        evidence.golden,
        evidence.rule,
        baseline,
        _accuracy(y, sample.labels, description.task),
        model.median_latency_ms(_one(sample.inputs, model.batch)),
        tuple(notes),
    )


def _bundle(
    examined: _Examined, profile: Profile, target: Target, out_dir: Path, description: Description
) -> ImportReport:
    host = read_host()
    binding = is_profiles_hardware(profile, host)
    checks = budget_checks(profile, size=len(examined.data), latency_ms=examined.latency_ms, latency_binding=binding)
    file = out_dir / f"{description.model}-{description.version}-{profile.id}{SUFFIX}"
    report = ImportReport(
        model=description.model,
        version=description.version,
        profile=profile.id,
        format=examined.format,
        precision=target.precision,
        path="",
        sha256="",
        size_bytes=0,
        model_size_bytes=len(examined.data),
        samples=len(next(iter(examined.sample.inputs.values()))),
        accuracy=examined.accuracy,
        latency_ms=round(examined.latency_ms, 4),
        latency_binding=binding,
        checks=checks,
        passed=passes(checks),
        notes=examined.notes,
        engine=examined.model.engine,
        engine_version=examined.model.version,
        host=host,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    report_file = file.with_name(file.name.removesuffix(SUFFIX) + ".report.json")
    if not report.passed:
        remove(file, report_file)
        return report
    contents = assemble(ready(examined, profile, host, description), profile, target, description.version)
    digest, size = write_proven(file, contents)
    report = msgspec.structs.replace(report, path=str(file), sha256=digest, size_bytes=size)
    kept = msgspec.structs.replace(report, path=file.name)
    text = msgspec.json.format(msgspec.json.encode(kept, order="sorted"), indent=1) + b"\n"
    write_atomically(report_file, lambda out: out.write(text))
    return report


def ready(examined: _Examined, profile: Profile, host: Host, description: Description) -> Ready:
    """What the bundle says of the file."""
    digest = hashlib.sha256(examined.data).hexdigest()
    lineage = {
        "run": f"imported-{digest[:12]}",
        "data": "sample",
        "data_fingerprint": examined.sample.fingerprint,
        "source_sha256": digest,
        "source_file": examined.name[:200],
        "converter": provenance.converter_version(),
    } | ({"origin": description.origin[:1000]} if description.origin else {})
    return Ready(
        model=description.model,
        task=description.task,
        labels=description.labels,
        inputs=examined.model.inputs,
        outputs=examined.model.outputs,
        data=examined.data,
        format=examined.format,
        golden=examined.golden,
        golden_rule=examined.golden_rule,
        baseline=examined.baseline,
        lineage=lineage,
        metrics={} if examined.accuracy is None else {"accuracy": examined.accuracy},
        samples=len(next(iter(examined.sample.inputs.values()))),
        kind="imported",
        numerics=numerics_of(
            Artifact(examined.data, examined.format, "float32"), profile, host, examined.model.version
        ),
    )


def _one(inputs: Tensors, batch: int | None) -> Tensors:
    """What one request holds at least."""
    if batch is None:
        return inputs
    size = 1 if batch == -1 else batch
    return {
        name: np.ascontiguousarray(
            np.concatenate([array] * -(-size // len(array)))[:size] if len(array) < size else array[:size]
        )
        for name, array in inputs.items()
    }


def _accuracy(outputs: NDArray[Any], labels: NDArray[np.int64] | None, task: str) -> float | None:
    if labels is None or task != "classification":
        return None
    flat = outputs.reshape(len(outputs), -1)
    if (classes := flat.shape[1]) > 1 and int(labels.max()) >= classes:
        raise SampleError(f"the labels 'y' name class {int(labels.max())}; the model has 0 to {classes - 1}")
    return float(np.mean(top_classes(outputs, border(outputs, labels)) == labels))
