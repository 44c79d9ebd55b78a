"""The winner's bundle: golden answers, numerics, proofs, provenance."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, NamedTuple

from edgewise_profiles.schema import Format, Profile, Target
from edgewise_protocol.bundle import write_bundle
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.manifest import Manifest

from edgewise_converter.baseline import make_baseline
from edgewise_converter.bundling import Contents, Ready, assemble
from edgewise_converter.engines.answering import answer
from edgewise_converter.engines.named import NamedModel
from edgewise_converter.errors import EngineError, ModelFileError, WriteError
from edgewise_converter.evidence import golden_of, numerics_of
from edgewise_converter.metrics.score import Score
from edgewise_converter.passes.iree_target import engine_range
from edgewise_converter.search.bench import Bench, Made
from edgewise_converter.search.candidates import Candidate, describe
from edgewise_converter.search.proving import prove
from edgewise_converter.search.request import Request
from edgewise_converter.writing import check_bundle

BASELINE_SAMPLES: Final = 5_000
_DIGITS: Final = 4


class BundleMade(NamedTuple):
    """A bundle in memory, proven as far as this machine can."""

    data: bytes
    sha256: str
    manifest: Manifest
    engine_version: str
    unproven: str


@dataclass
class Bundler:
    """Makes and proves bundles of candidates, and keeps the last that stood."""

    bench: Bench
    profile: Profile
    request: Request
    allowed_points: float
    made: BundleMade | None = None

    def try_one(self, candidate: Candidate, made: Made, score: Score) -> str:
        """Bundle a candidate, read it back, and run its golden inputs here and on the target's instruction set.

        Returns:
            why it does not stand; empty where it does.

        Raises:
            ProofMissingError: a proof is demanded, and cannot be had on this machine.
            WriteError: a bound of the bundle's format is exceeded.
        """
        self.made = None
        try:
            loaded = self.bench.open(candidate, made)
            contents = self._contents(candidate, made, score, loaded)
            proven = prove(contents, self.profile, self.request.prove)
            if proven.failed:
                return f"on {self.profile.machine}: {proven.failed}"
            data = self._checked(proven.contents, made)
        except (EngineError, ModelFileError) as error:
            return str(error)
        digest = hashlib.sha256(data).hexdigest()
        self.made = BundleMade(data, digest, proven.contents.manifest, loaded.version, proven.unproven)
        return ""

    def _contents(self, candidate: Candidate, made: Made, score: Score, loaded: NamedModel) -> Contents:
        model, artifact = self.bench.model, made.artifact
        evidence = golden_of(loaded, model.heldout, model.task, in_order=model.in_order)
        ready = Ready(
            model=model.name,
            task=model.task,
            labels=model.labels,
            inputs=loaded.inputs,
            outputs=loaded.outputs,
            data=artifact.data,
            format=artifact.format,
            golden=evidence.golden,
            golden_rule=evidence.rule,
            baseline=self._baseline(candidate, made),
            lineage=model.lineage,
            metrics=metrics_of(score),
            samples=len(model.heldout),
            state=model.state,
            numerics=numerics_of(artifact, self.profile, self.bench.host, loaded.version),
            engine_min=engine_min(artifact.format),
            engine_below=engine_below(artifact.format),
            more={
                "steps": [describe(step) for step in candidate.steps if step.name not in made.unchanged],
                "metric": model.metric,
                "accuracy_drop": self.allowed_points,
            },
        )
        target = Target(engine=candidate.engine, precision=candidate.precision)
        return assemble(ready, self.profile, target, self.request.version)

    def _baseline(self, candidate: Candidate, made: Made) -> bytes:
        """Of drift, from the calibration requests; none where there is no batch to watch."""
        model = self.bench.model
        if not model.calibration.batched or model.state:
            return b""
        requests = model.calibration if model.in_order else model.calibration.spread(BASELINE_SAMPLES)
        loaded = self.bench.open(candidate, made)
        x, answers = requests.feeds[loaded.inputs[0].name], answer(loaded, requests)
        return make_baseline(x, answers[loaded.outputs[0].name], model.task)

    def _checked(self, contents: Contents, made: Made) -> bytes:
        buffer = io.BytesIO()
        try:
            write_bundle(buffer, contents.manifest, contents.files)
            check_bundle(buffer, made.artifact)
        except ProtocolError as error:
            raise WriteError(
                f"{contents.manifest.model} for {self.profile.id} would not be a bundle that opens: {error}"
            ) from error
        return buffer.getvalue()


def engine_min(format_: Format) -> str:
    """The oldest engine that reads a file made here, where it is younger than the profile's; else empty."""
    if format_ == "ort":
        return version("onnxruntime")
    return engine_range(version("iree-base-compiler"))[0] if format_ == "vmfb" else ""


def engine_below(format_: Format) -> str:
    """The first engine that does not read a file made here, where that is known; else empty."""
    return engine_range(version("iree-base-compiler"))[1] if format_ == "vmfb" else ""


def metrics_of(score: Score) -> dict[str, float]:
    """What was measured on held-out samples, by the names that manifests use."""
    if score.name == "top1":
        found = {"accuracy": score.value, "accuracy_float": score.float_value, "agreement": score.agreement}
    elif score.labelled:
        found = {score.name: score.value, f"{score.name}-float": score.float_value, "agreement": score.agreement}
    else:
        found = {"agreement": score.agreement}
    return found | {
        "cosine": float(f"{score.cosine:.{_DIGITS}g}"),
        "relative_error": float(f"{score.relative_error:.{_DIGITS}g}"),
    }
