"""Converting and judging one run's model: every form is made and measured once a process.

Profiles share what is the same for them: two boards that run int8 TFLite get one export, one
quantization, one measurement and, but for the manifest, one bundle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from edgewise_protocol.manifest import Golden

from edgewise_converter import golden
from edgewise_converter.baseline import make_baseline
from edgewise_converter.engines.opening import open_model
from edgewise_converter.engines.runner import Array
from edgewise_converter.errors import EngineError
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.registry import PASSES
from edgewise_converter.plan import Step
from edgewise_converter.quality import Quality, compare
from edgewise_converter.requests import Requests
from edgewise_converter.run_directory import Run, Samples
from edgewise_converter.source import Source, load_source

Progress = Callable[[str, float], None]
"""Called with what is being done, and the share of the whole that is behind."""
LOADING: Final = "load"
MEASURING: Final = "measure"


@dataclass(frozen=True, slots=True)
class Finished:
    """A form of the model with everything that a bundle says of it."""

    artifact: Artifact
    engine: str
    engine_version: str
    quality: Quality
    latency_ms: float
    baseline: bytes
    golden: bytes
    golden_rule: Golden
    seconds: dict[str, float] = field(default_factory=dict)
    """What making it took, by stage."""


@dataclass
class Workshop:
    """One run's model on the bench."""

    run: Run
    _artifacts: dict[tuple[Step, ...], Artifact] = field(default_factory=dict)
    _finished: dict[tuple[Step, ...], Finished] = field(default_factory=dict)

    @cached_property
    def source(self) -> Source:
        """The model as trained."""
        return load_source(self.run)

    @cached_property
    def heldout(self) -> Samples:
        """Samples to judge on."""
        return self.run.heldout()

    @cached_property
    def reference(self) -> Samples:
        """Samples to calibrate on, and to sketch."""
        return self.run.reference()

    @cached_property
    def materials(self) -> Materials:
        """What passes draw on."""
        record = self.run.record
        calibration = Requests({record.input.name: self.reference.x})
        return Materials(record.model, (record.input,), (record.output,), calibration, self.source)

    @cached_property
    def source_outputs(self) -> Array:
        """The source's outputs on the held-out samples."""
        return self.source.infer(self.heldout.x)

    def finish(self, steps: tuple[Step, ...], progress: Progress) -> Finished:
        """Make and measure a form; what is shared with an earlier call costs nothing.

        Args:
            steps: see `edgewise_converter.plan`.
            progress: called with each stage and the share of this form's work that is behind.

        Raises:
            RunError, PassError, EngineError, MissingExtraError: see there.
        """
        if steps in self._finished:
            return self._finished[steps]
        seconds: dict[str, float] = {}
        total = len(steps) + 2
        progress("loading the source model", 0.0)
        with _timed(seconds, LOADING):
            materials = self.materials
        artifact: Artifact | None = None
        for done, step in enumerate(steps, start=1):
            progress(PASSES[step.name].title, done / total)
            with _timed(seconds, step.name):
                artifact = self._make(steps[:done], artifact, materials)
        if artifact is None:
            raise ValueError("a plan has at least one step")
        progress("measuring on held-out data", (total - 1) / total)
        with _timed(seconds, MEASURING):
            finished = self._measure(artifact, seconds)
        self._finished[steps] = finished
        return finished

    def _make(self, steps: tuple[Step, ...], before: Artifact | None, materials: Materials) -> Artifact:
        if steps not in self._artifacts:
            step = steps[-1]
            self._artifacts[steps] = PASSES[step.name].load()(materials, before, step.config)
        return self._artifacts[steps]

    def _measure(self, artifact: Artifact, seconds: dict[str, float]) -> Finished:
        record = self.run.record
        here = artifact.stand_in or artifact
        runner = open_model(here.data, here.format)
        x = self.heldout.x
        outputs = runner.infer(x)
        if outputs.shape != self.source_outputs.shape:
            raise EngineError(
                f"the converted model gives {list(outputs.shape)}; its source gives {list(self.source_outputs.shape)}"
            )
        chosen = golden.choose(outputs)
        rule = golden.describe(outputs[chosen], artifact.precision, runner.output_step(), record.task)
        return Finished(
            artifact=artifact,
            engine=runner.engine,
            engine_version=runner.version,
            quality=compare(outputs, self.source_outputs, self.heldout.y, record.task),
            latency_ms=runner.median_latency_ms(np.ascontiguousarray(x[:1])),
            baseline=make_baseline(self.reference.x, runner.infer(self.reference.x), record.task),
            golden=golden.encode(record.input.name, x[chosen], record.output.name, outputs[chosen]),
            golden_rule=rule,
            seconds=seconds,
        )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = round(time.perf_counter() - start, 3)
