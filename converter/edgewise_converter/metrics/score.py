"""What a metric finds. Pure; finite everywhere, so that JSON can hold it."""

from __future__ import annotations

from typing import Final

import msgspec

LARGEST: Final = 1e300
"""Stands for an infinite error, which JSON cannot hold."""


class OutputAgreement(msgspec.Struct, frozen=True, kw_only=True):
    """One output of the converted model against the same output of its float source.

    Where an element is NaN or infinite, the errors are `LARGEST`, `cosine` is -1, and `agreement` counts it as lost.
    """

    output: str
    agreement: float
    """In [0, 1]: the share of samples with the same class, of equal elements for integers, else R squared."""
    basis: str
    """What `agreement` is: `top-1`, `equal elements` or `r-squared`."""
    cosine: float
    """Cosine of the angle between both outputs, taken as vectors over all samples, in [-1, 1]."""
    relative_error: float
    """RMS of the difference over the RMS of the source's output."""
    max_error: float
    """Largest absolute difference of an element."""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """A converted model under a metric.

    `value` and `float_value` are in [0, 1], larger is better. For `agreement` they are the least agreement among
    the outputs, and 1.
    """

    name: str
    """The metric."""
    value: float
    """Of the converted model."""
    float_value: float
    """Of its float source."""
    samples: int
    labelled: bool
    """Whether labels were used; without, agreement with the source stands in."""
    outputs: tuple[OutputAgreement, ...]
    """Every output that was compared, in the source's order."""

    @property
    def drop(self) -> float:
        """What conversion cost, in points of 100; negative where it gained."""
        return round(100 * (self.float_value - self.value), 9)

    @property
    def agreement(self) -> float:
        """The least agreement among the outputs, in [0, 1]."""
        return min((o.agreement for o in self.outputs), default=0.0)

    @property
    def cosine(self) -> float:
        """The least cosine among the outputs."""
        return min((o.cosine for o in self.outputs), default=-1.0)

    @property
    def relative_error(self) -> float:
        """The largest relative RMS error among the outputs."""
        return max((o.relative_error for o in self.outputs), default=LARGEST)

    @property
    def basis(self) -> str:
        """What the value says, in words for a report."""
        if self.labelled:
            return f"{self.name} on {self.samples} labelled samples"
        kinds = ", ".join(dict.fromkeys(o.basis for o in self.outputs))
        return f"output agreement with the float model ({kinds}) on {self.samples} samples without labels"
