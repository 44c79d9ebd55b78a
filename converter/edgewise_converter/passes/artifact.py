"""What passes hand to each other: a model file's bytes, and what they are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from edgewise_profiles.schema import Format, Precision
from edgewise_protocol.manifest import TensorSpec

from edgewise_converter.errors import PassError
from edgewise_converter.requests import Requests
from edgewise_converter.source import Source


class Signature(NamedTuple):
    """The tensors of a file that does not name them itself, in the file's order and with its own shapes."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model in some form."""

    data: bytes
    format: Format
    precision: Precision
    signature: Signature | None = None
    """Of compiled forms."""
    stand_in: Artifact | None = None
    """What answers for `data` on a host of another architecture; its latency says nothing of the target."""


@dataclass(frozen=True, slots=True)
class Materials:
    """What a pass may draw on besides the artifact before it."""

    model: str
    """Its name, for messages."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    calibration: Requests
    """Requests of the training distribution, checked."""
    source: Source | None = None
    """The torch program, where exports begin."""

    @property
    def input_names(self) -> list[str]:
        """In the model's order."""
        return [spec.name for spec in self.inputs]

    @property
    def output_names(self) -> list[str]:
        """In the model's order."""
        return [spec.name for spec in self.outputs]

    def torch_source(self) -> Source:
        """Where an export begins.

        Raises:
            PassError: the model is no torch program.
        """
        if self.source is None:
            raise PassError(f"{self.model} is a finished file: only a torch program can be exported")
        return self.source
