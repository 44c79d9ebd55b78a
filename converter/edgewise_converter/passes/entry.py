"""What the catalogue says of a pass."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, cast

import msgspec
from edgewise_profiles.schema import Format, Precision
from msgspec import Meta

CalibrationSamples = Annotated[int, Meta(ge=1, le=100_000)]
KeptFloat = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=1024)], ...], Meta(max_length=10_000)]
"""Layers that a quantizing pass leaves in float: names as its `layers` gives them."""
PassConfig = msgspec.Struct
"""The settings of a pass: a frozen struct that can be compared, hashed and reported."""


class Apply(Protocol):
    """A pass at work: its module's `apply`."""

    def __call__(self, materials: Any, before: Any, config: Any) -> Any: ...


class Layers(Protocol):
    """What a quantizing pass can leave in float: its module's `layers`, in the graph's order."""

    def __call__(self, before: Any) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class PassEntry:
    """A pass: what it is called, reads, makes and needs.

    Its module is `edgewise_converter.passes.<name>` with `apply(materials, before, config) ->
    Artifact`. A pass that quantizes layer by layer has `layers(before) -> names` too, and
    `keep_float: tuple[str, ...]` in its settings.
    """

    name: str
    title: str
    reads: Format | None
    """Of the artifact before it; None for an export of the torch program."""
    makes: Format
    precision: Precision | None
    """None where the artifact's stays as it was."""
    config: type[PassConfig]
    needs: tuple[str, ...]
    """Python distributions besides the converter's own."""

    def load(self) -> Apply:
        """Import the pass; the libraries it needs are imported when it is applied."""
        return cast(Apply, self._module().apply)

    def layers(self) -> Layers | None:
        """What tells the layers that the pass quantizes; None where it cannot leave any in float."""
        return cast(Layers | None, getattr(self._module(), "layers", None))

    def _module(self) -> Any:
        return importlib.import_module(f"edgewise_converter.passes.{self.name}")
