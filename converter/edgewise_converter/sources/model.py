"""A model on its way to a device, wherever it comes from: what passes draw on, and what forms are judged by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from edgewise_protocol.manifest import StatePair, TensorSpec
from numpy.typing import NDArray

from edgewise_converter.engines.answering import answer
from edgewise_converter.engines.opening import open_named
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.requests import Requests, Tensors, digest_of
from edgewise_converter.source import Source

Family = Literal["torch", "onnx", "tflite"]


@dataclass(frozen=True)
class Model:
    """A model with the samples that it is calibrated on and judged by.

    The fields are frozen; the source's answers are computed once.
    """

    name: str
    task: str
    """`classification`, `regression`, `embedding` or `other`."""
    labels: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    """As a client sees them."""
    outputs: tuple[TensorSpec, ...]
    state: tuple[StatePair, ...]
    """Outputs that a client feeds back."""
    origin: Artifact | Source
    calibration: Requests
    heldout: Requests
    y: NDArray[Any] | None
    """Labels of the held-out requests, (N, ...)."""
    metric: str
    """By which forms are judged, see `edgewise_converter.metrics`."""
    lineage: dict[str, str]
    digest: str
    """SHA-256 of what the model was before any pass."""
    in_order: bool = False
    """The file keeps variables inside: its answers depend on the requests before, from a fresh load."""
    integers: frozenset[str] = frozenset()
    """Inputs of a TFLite file that the client gives as the file's own integers."""
    sequences: tuple[int, ...] = ()
    """Lengths of the sequences that the held-out requests of a model with a state are, one after another."""
    notes: tuple[str, ...] = ()
    """What was decided for the user, and what they should know."""

    @property
    def family(self) -> Family:
        """Which passes it can go through."""
        if isinstance(self.origin, Source):
            return "torch"
        return "tflite" if self.origin.format == "tflite" else "onnx"

    @property
    def materials(self) -> Materials:
        """What passes draw on."""
        source = self.origin if isinstance(self.origin, Source) else None
        return Materials(self.name, self.inputs, self.outputs, self.calibration, source)

    @property
    def judged(self) -> tuple[str, ...]:
        """Names of the outputs that count; what a client feeds back does not."""
        fed_back = {pair.output for pair in self.state}
        return tuple(spec.name for spec in self.outputs if spec.name not in fed_back)

    @cached_property
    def heldout_sha256(self) -> str:
        """Over all that the model is judged by: requests, labels, metric, task, outputs, state and sequences."""
        labels = {} if self.y is None else {"y": self.y}
        pairs = [(pair.input, pair.output) for pair in self.state]
        how = repr((self.metric, self.task, self.judged, pairs, self.sequences, self.in_order))
        return digest_of(labels, self.heldout.sha256, how)

    @cached_property
    def _reference(self) -> Tensors:
        return self.source_answers(self.heldout)

    def reference_outputs(self) -> Tensors:
        """The source's outputs on the held-out requests, (N, ...) by name.

        Raises:
            EngineError: it fails on them.
        """
        return self._reference

    def source_answers(self, requests: Requests) -> Tensors:
        """The source's outputs on requests, (N, ...) by name."""
        if isinstance(self.origin, Source):
            return self.origin.answer(requests)
        return answer(open_named(self.origin.data, self.origin.format, self.integers), requests)
