"""What passes hand to each other: a model file's bytes, and what they are made from."""

from __future__ import annotations

from dataclasses import dataclass

from edgewise_profiles.schema import Format, Precision
from edgewise_protocol.manifest import TensorSpec

from edgewise_converter.errors import PassError
from edgewise_converter.requests import Requests
from edgewise_converter.source import Source


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model in some form."""

    data: bytes
    format: Format
    precision: Precision


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

    def torch_source(self) -> Source:
        """Where an export begins.

        Raises:
            PassError: the model is no torch program.
        """
        if self.source is None:
            raise PassError(f"{self.model} is a finished file: only a torch program can be exported")
        return self.source
