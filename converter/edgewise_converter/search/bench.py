"""The bench: candidates are made, run on the held-out requests and timed here; nothing is done twice.

What was made or measured before comes from the cache, by content.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
from edgewise_protocol.manifest import TensorSpec

from edgewise_converter.cache import Cache, key_of
from edgewise_converter.engines.answering import answer, answer_sequences
from edgewise_converter.engines.named import FREE, NamedModel
from edgewise_converter.engines.opening import open_artifact
from edgewise_converter.errors import ConverterError, EngineError, PassError, UnchangedError
from edgewise_converter.hardware import Host
from edgewise_converter.metrics.evaluation import evaluate
from edgewise_converter.metrics.score import Score
from edgewise_converter.passes.artifact import Artifact, Signature
from edgewise_converter.passes.registry import PASSES
from edgewise_converter.requests import Requests, Tensors
from edgewise_converter.search.candidates import Candidate
from edgewise_converter.search.step import Step
from edgewise_converter.sources.model import Model

ROUNDS: Final = 9
_COARSE: Final = {"float32": "float32", "float16": "float16"}
"""What golden answers are held to; every other form rounds as int8 does."""
_ROUND_SECONDS: Final = 0.02
_MAX_CALLS: Final = 200
_WARM_UP_CALLS: Final = 5
_scores = msgspec.json.Decoder(Score)
_latencies = msgspec.json.Decoder(dict[str, float])


@dataclass(frozen=True, slots=True)
class Made:
    """A candidate's file."""

    artifact: Artifact
    sha256: str
    unchanged: tuple[str, ...]
    """Preparing passes that found nothing to do, or could not do it; the form goes without."""


@dataclass
class Bench:
    """One model's candidates on this host."""

    model: Model
    cache: Cache
    host: Host
    _made: dict[tuple[Step, ...], Made | UnchangedError] = field(default_factory=dict)
    _outputs: dict[str, Tensors] = field(default_factory=dict)

    def make(self, candidate: Candidate) -> Made:
        """The candidate's file.

        Raises:
            PassError, UnchangedError, MissingExtraError: a pass fails, or would change nothing.
            EngineError: a pass gives what is not the candidate's form.
        """
        made = self._after(candidate.steps)
        if made.artifact.format != candidate.format:
            raise EngineError(f"{candidate.name} became a {made.artifact.format} file; {candidate.format} was meant")
        return made

    def before_last(self, candidate: Candidate, place: int) -> Artifact:
        """What the candidate's pass at `place` gets."""
        return self._after(candidate.steps[:place]).artifact

    def score(self, candidate: Candidate, made: Made) -> Score:
        """How near the candidate comes to the source on the held-out requests, see `answers`.

        Raises:
            EngineError, ModelFileError: the engine refuses the file, or fails on it.
            MetricError: the metric cannot be computed of its outputs.
        """
        key = key_of(made.sha256, candidate.engine, self.model.digest, self.model.heldout_sha256, self.host.cpu)
        if (kept := self.cache.get("scores", key)) is not None:
            return _scores.decode(kept)
        outputs = self.answers(candidate, made)
        found = self.evaluate(outputs, self.model.reference_outputs())
        self.cache.put("scores", key, msgspec.json.encode(found))
        return found

    def evaluate(self, outputs: Tensors, reference: Tensors) -> Score:
        """The score of outputs on the held-out requests; a model's state does not count."""
        judged = {name: reference[name] for name in self.model.judged}
        _check_names(outputs, self.model.judged)
        for name, array in judged.items():
            if outputs[name].shape != array.shape:
                raise EngineError(
                    f"the converted model gives {name!r} as {list(outputs[name].shape)}; "
                    f"its source gives {list(array.shape)}"
                )
        model = self.model
        return evaluate(model.metric, outputs, judged, model.y, model.heldout.feeds, task=model.task)

    def answers(self, candidate: Candidate, made: Made) -> Tensors:
        """The candidate's outputs on the held-out requests, which it gets as a device would.

        A model whose state the client feeds back runs its sequences on its own state: errors that add up from
        step to step count.

        Raises:
            EngineError, ModelFileError: see `open`; or it fails on a request.
        """
        model = self.model
        if not model.state:
            return self.run(candidate, made, model.heldout)
        lengths = model.sequences or (1,) * len(model.heldout)
        return answer_sequences(self.open(candidate, made), model.heldout, model.state, lengths)

    def run(self, candidate: Candidate, made: Made, requests: Requests) -> Tensors:
        """The candidate's outputs on requests, each with the state that it brings.

        Raises:
            EngineError, ModelFileError: see `open`; or it fails on a request, or has not the source's outputs.
        """
        outputs = answer(self.open(candidate, made), requests)
        _check_names(outputs, self.model.judged)
        return outputs

    def open(self, candidate: Candidate, made: Made) -> NamedModel:
        """The candidate, loaded afresh.

        Raises:
            EngineError, ModelFileError: its engine refuses it, or the device's would.
        """
        if candidate.engine == "tflite-runtime":
            from edgewise_converter.tflite_file.compat import check_tflite_runtime

            check_tflite_runtime(made.artifact.data, candidate.name)
        loaded = open_artifact(made.artifact, self.model.integers)
        loaded.precision = _COARSE.get(candidate.precision, "int8")
        return loaded

    def latencies(self, finalists: Sequence[tuple[Candidate, Made]]) -> dict[str, float]:
        """Median time of one call on one thread of this host, milliseconds, by candidate's name.

        All are timed in turn, round by round, so that what disturbs the host disturbs all alike;
        one that fails while it is timed is left out.
        """
        key = key_of(self.host.cpu, self.model.heldout.sha256, *(f"{m.sha256} {c.name}" for c, m in finalists))
        if (kept := self.cache.get("latencies", key)) is not None:
            return _latencies.decode(kept)
        found = self._time(finalists)
        self.cache.put("latencies", key, msgspec.json.encode(found))
        return found

    def _time(self, finalists: Sequence[tuple[Candidate, Made]]) -> dict[str, float]:
        loaded: dict[str, NamedModel] = {}
        requests: dict[str, Tensors] = {}
        calls: dict[str, int] = {}
        for candidate, made in finalists:
            try:
                model = self.open(candidate, made)
                request = requests[candidate.name] = _least(model, self.model.heldout.one(0))
                for _ in range(_WARM_UP_CALLS):
                    model.call(request)
                calls[candidate.name] = max(1, min(_MAX_CALLS, int(_ROUND_SECONDS / _seconds(model, request))))
            except EngineError:
                continue
            loaded[candidate.name] = model
        times: dict[str, list[float]] = {name: [] for name in loaded}
        for _ in range(ROUNDS):
            for name, model in loaded.items():
                times[name].append(statistics.median(_seconds(model, requests[name]) for _ in range(calls[name])))
        return {name: round(statistics.median(seconds) * 1e3, 5) for name, seconds in times.items()}

    def _after(self, steps: tuple[Step, ...]) -> Made:
        if not steps:
            if not isinstance(self.model.origin, Artifact):
                raise EngineError(f"{self.model.name} is a torch program, which no device runs")
            return Made(self.model.origin, self.model.digest, ())
        if steps not in self._made:
            try:
                self._made[steps] = self._apply(steps)
            except UnchangedError as error:
                self._made[steps] = error
        found = self._made[steps]
        if isinstance(found, UnchangedError):
            raise found
        return found

    def _apply(self, steps: tuple[Step, ...]) -> Made:
        step = steps[-1]
        before = self._after(steps[:-1]) if len(steps) > 1 or isinstance(self.model.origin, Artifact) else None
        model = self.model
        names = repr((model.inputs, model.outputs))  # an exporter writes them into the file
        parts = (before.sha256 if before else model.digest, model.calibration.sha256, names)
        key = key_of(step.name, repr(step.config), *parts)
        unchanged = before.unchanged if before else ()
        if (kept := self.cache.get("artifacts", key)) is not None:
            artifact = msgspec.msgpack.decode(kept, type=_Kept).artifact()
        else:
            try:
                artifact = PASSES[step.name].load()(model.materials, before.artifact if before else None, step.config)
            except PassError:
                if step.optional and before is not None:
                    return Made(before.artifact, before.sha256, (*unchanged, step.name))
                raise
            except ConverterError:
                raise
            except Exception as error:
                raise PassError(f"{step.name} fails: {type(error).__name__}: {str(error)[:300]}") from error
            self.cache.put("artifacts", key, msgspec.msgpack.encode(_Kept.of(artifact)))
        return Made(artifact, key_of(artifact.data), unchanged)


class _Kept(msgspec.Struct, frozen=True):
    """An artifact in the cache."""

    data: bytes
    format: str
    precision: str
    signature: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] | None = None
    stand_in: _Kept | None = None

    @classmethod
    def of(cls, artifact: Artifact) -> _Kept:
        signature = None if artifact.signature is None else (artifact.signature.inputs, artifact.signature.outputs)
        stand_in = None if artifact.stand_in is None else cls.of(artifact.stand_in)
        return cls(artifact.data, artifact.format, artifact.precision, signature, stand_in)

    def artifact(self) -> Artifact:
        """What was put."""
        signature = None if self.signature is None else Signature(*self.signature)
        stand_in = None if self.stand_in is None else self.stand_in.artifact()
        # Interned: msgspec leaves a default out of a manifest by identity, and equal bundles must have equal bytes.
        format_, precision = sys.intern(self.format), sys.intern(self.precision)
        return Artifact(self.data, format_, precision, signature, stand_in)  # type: ignore[arg-type]


def _check_names(outputs: Tensors, wanted: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in outputs]:
        raise EngineError(f"the converted model has no output {missing[0]!r}; it gives {', '.join(outputs)}")


def _least(model: NamedModel, request: Tensors) -> Tensors:
    """A request as the file takes it in one call: repeated where its batch is fixed."""
    if model.batch in (None, FREE, 1):
        return request
    return {name: np.ascontiguousarray(np.repeat(array, model.batch, axis=0)) for name, array in request.items()}


def _seconds(model: NamedModel, request: Tensors) -> float:
    # One call of a loaded file: `infer` would load a file that keeps variables anew for each request.
    start = time.perf_counter()
    model.call(request)
    return time.perf_counter() - start
