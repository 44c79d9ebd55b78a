"""A model with the samples that everybody gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """What is converted, and what it is judged by.

    Attributes:
        name: of the row.
        model: what Edgewise gets: a file, or a run of the trainer.
        forms: the same model as float files, by format, which is what peers get.
        calibration: inputs (N, ...) by name.
        heldout: inputs (N, ...) that Edgewise's search judges by; `y` are labels. Empty where a run brings its own.
        test: inputs that all are judged by where nobody has seen them; empty for `heldout`.
        state: pairs of an input and the output that is fed back into it.
        task: of the model.
        metric: see `edgewise_converter.metrics`; empty for the task's own.
        data: where the samples come from, in words.
    """

    name: str
    model: Path
    forms: Mapping[str, Path]
    calibration: Tensors
    heldout: Tensors
    task: str
    data: str
    test: Tensors = field(default_factory=dict)
    state: tuple[tuple[str, str], ...] = ()
    metric: str = ""

    @property
    def judged(self) -> Tensors:
        """Inputs that the table's scores are of, with `y` where there are labels."""
        return self.test or self.heldout


def kept(path: Path, make: Callable[[], Tensors]) -> Tensors:
    """Arrays from a file, made the first time."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part.npz")
        save(temporary, make())
        temporary.rename(path)
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def save(path: Path, arrays: Tensors) -> None:
    """Arrays as an .npz."""
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
