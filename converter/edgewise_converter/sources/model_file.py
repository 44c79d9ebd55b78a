"""A finished `.onnx` or `.tflite` file as a model: it goes through the passes that read its format."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from edgewise_profiles.schema import Format

from edgewise_converter.engines.answering import answer
from edgewise_converter.engines.named_apart import NamedApart
from edgewise_converter.engines.named_tflite import NamedTflite
from edgewise_converter.engines.opening import open_named
from edgewise_converter.importing.model_file import read_model
from edgewise_converter.importing.samples import integers_of
from edgewise_converter.passes.artifact import Artifact
from edgewise_converter.sources.feeding import check_state
from edgewise_converter.sources.model import Model
from edgewise_converter.sources.provenance import lineage_of_file
from edgewise_converter.sources.reading import Wanted, arrays_of, judged_by, prepare, task_of
from edgewise_converter.sources.shape import Shape


def read(path: Path, wanted: Wanted) -> Model:
    """Read an ONNX or TFLite file and the samples of its inputs.

    Raises:
        ModelFileError: it is damaged, or cannot go to a device.
        EngineError: its engine refuses it, or fails on the samples.
        SampleError, MetricError: the samples are not such as it takes, or do not hold what the metric needs.
    """
    data, format_ = read_model(path, converted=True)
    return from_bytes(data, format_, path.name, wanted)


def from_bytes(data: bytes, format_: Format, file: str, wanted: Wanted) -> Model:
    """The same of a file's bytes."""
    first, second = arrays_of(wanted)
    integers = integers_of(first)
    loaded = open_named(data, format_, integers)
    shape = Shape(loaded.inputs, loaded.outputs, loaded.batch)
    shape = replace(shape, state=check_state(wanted.state, shape))
    in_order = format_ == "tflite" and keeps_variables(data)
    if isinstance(loaded, NamedTflite):
        with NamedApart(loaded, data, integers) as apart:
            ready = prepare(first, second, shape, apart.infer, in_order=in_order)
            for requests in (ready.calibration, ready.heldout):
                apart.reset()
                answer(apart, requests)
    else:
        ready = prepare(first, second, shape, loaded.infer, in_order=in_order)
    task = task_of(wanted, ready.y)
    digest = hashlib.sha256(data).hexdigest()
    notes = ready.notes
    if loaded.precision != "float32":
        notes += (f"{file} is {loaded.precision} already: it is judged as it is, and what is lost cannot come back",)
    return Model(
        name=wanted.name or Path(file).stem,
        task=task,
        labels=wanted.labels,
        inputs=loaded.inputs,
        outputs=loaded.outputs,
        state=shape.state,
        origin=Artifact(data, format_, loaded.precision),  # type: ignore[arg-type]  # an engine's words are the schema's
        calibration=ready.calibration,
        heldout=ready.heldout,
        y=ready.y,
        metric=judged_by(wanted, ready.y, task),
        lineage=lineage_of_file(digest, file, ready, wanted.origin),
        digest=digest,
        in_order=in_order,
        integers=integers,
        sequences=ready.sequences,
        notes=notes,
    )


def keeps_variables(data: bytes) -> bool:
    """Whether a TFLite file's answers depend on the requests before."""
    from edgewise_converter.tflite_file.operators import is_stateful
    from edgewise_converter.tflite_file.reading import read as read_tflite

    return bool(is_stateful(read_tflite(data)))
