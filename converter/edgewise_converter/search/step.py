"""One pass of a chain."""

from __future__ import annotations

from typing import NamedTuple

from edgewise_converter.passes.entry import PassConfig


class Step(NamedTuple):
    """One pass with its settings. Equal steps on equal sources give equal artifacts."""

    name: str
    config: PassConfig
    optional: bool = False
    """Whether it is left out where it would change nothing, or fails."""
