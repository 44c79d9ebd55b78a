"""What passes hand to each other: a model file's bytes, and what they are made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from edgewise_profiles.schema import Format, Precision
from numpy.typing import NDArray

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

    source: Source
    calibration: NDArray[np.float32]
    """Inputs of the training distribution, (N, ...), checked."""
