"""A training run as a model: its exported program, its reference samples, its held-out samples."""

from __future__ import annotations

from pathlib import Path

from edgewise_converter.bundling import lineage_of
from edgewise_converter.errors import SampleError
from edgewise_converter.metrics.evaluation import default_metric
from edgewise_converter.requests import Requests
from edgewise_converter.run_directory import open_run
from edgewise_converter.source import load_source
from edgewise_converter.sources.model import Model
from edgewise_converter.sources.reading import Wanted


def read(folder: Path, wanted: Wanted) -> Model:
    """Open a run directory.

    Raises:
        RunError, GateError: it cannot be converted.
        SampleError: samples or a state were given, of which a run has its own, or none.
    """
    if wanted.calibration or wanted.heldout or wanted.state:
        raise SampleError("a run brings its own samples, and has no state: leave --calibration, --heldout, --state out")
    run = open_run(folder)
    record = run.record
    reference, heldout = run.reference(), run.heldout()
    task = wanted.task or record.task
    classes = task == "classification"
    return Model(
        name=wanted.name or record.model,
        task=task,
        labels=wanted.labels or record.labels,
        inputs=(record.input,),
        outputs=(record.output,),
        state=(),
        origin=load_source(run),
        calibration=Requests({record.input.name: reference.x}),
        heldout=Requests({record.input.name: heldout.x}),
        y=heldout.y if classes or wanted.metric else None,
        metric=wanted.metric or default_metric(task, classes),
        lineage=lineage_of(run),
        digest=run.source_sha256,
    )
