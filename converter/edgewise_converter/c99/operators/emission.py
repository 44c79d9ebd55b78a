"""What an operator becomes, and what every family asks of its tensors. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.c99.fixed_point import ACTIVATIONS, Multiplier, activation_range, multiplier_of
from edgewise_converter.c99.graph import Graph, Op, Tensor, activation_fault, refuse
from edgewise_converter.c99.storage import Sharing

Value = int | tuple[int, ...]
_QUANTIZE: Final = "quantize the model to full int8 first (pass tflite_int8)"
_LARGEST_SHIFT: Final = 29
"""Beyond which kernels differ in what they saturate."""
_EXPORT: Final = "export the model otherwise, or split it"


@dataclass(frozen=True, slots=True)
class Emission:
    """C of one operator.

    Attributes:
        header: the kernels' file.
        calls: statements. `{p}` stands for the settings, `{c.NAME}` for a constant, `{t.INDEX}` for a tensor.
        settings: the settings' struct and its fields; None where there are none.
        constants: arrays by name.
        sharing: which input's bytes the output may take.
    """

    header: str
    calls: tuple[str, ...]
    settings: tuple[str, Mapping[str, Value]] | None = None
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    sharing: Sharing = field(default_factory=Sharing)


@dataclass(frozen=True, slots=True)
class Site:
    """An operator among its tensors."""

    graph: Graph
    op: Op

    def activation(self, place: int) -> Tensor:
        """An input that is computed, or a constant of the same kind.

        Raises:
            UnsupportedModelError: it is not there, or no int8 activation.
        """
        tensor = self.optional(place)
        if tensor is None:
            raise refuse(self.op, f"input {place} is missing", _EXPORT)
        if not tensor.shape and tensor.data is not None:
            tensor = Tensor(
                tensor.name, (1,), tensor.dtype, tensor.scales, tensor.zero_points, tensor.axis, tensor.data.reshape(1)
            )
        if why := activation_fault(tensor):
            raise refuse(self.op, f"its input {tensor.name[:80]!r} {why}", _QUANTIZE)
        return tensor

    def optional(self, place: int) -> Tensor | None:
        """An input, or None where it is left out."""
        inputs = self.op.inputs
        return self.graph.tensors[inputs[place]] if place < len(inputs) and inputs[place] >= 0 else None

    def constant(self, place: int, dtype: type[Any], what: str) -> NDArray[Any]:
        """A constant input of that type.

        Raises:
            UnsupportedModelError: it is computed, missing, or of another type.
        """
        tensor = self.optional(place)
        if tensor is None or tensor.data is None or tensor.data.dtype != np.dtype(dtype):
            kind = "missing" if tensor is None else "computed" if tensor.data is None else str(tensor.data.dtype)
            raise refuse(self.op, f"its {what} must be a constant of {np.dtype(dtype)}, and is {kind}", _EXPORT)
        return tensor.data

    @property
    def output(self) -> Tensor:
        """The only output.

        Raises:
            UnsupportedModelError: there are several.
        """
        if len(self.op.outputs) != 1:
            raise refuse(self.op, f"it has {len(self.op.outputs)} outputs", _EXPORT)
        return self.graph.tensors[self.op.outputs[0]]

    def range(self) -> tuple[int, int]:
        """What the fused activation lets through."""
        kind = int(self.op.option("fusedActivationFunction"))
        if kind not in ACTIVATIONS:
            raise refuse(self.op, f"its activation is number {kind}", "use RELU, RELU6 or none")
        return activation_range(kind, self.output.scale, self.output.zero_point)

    def factor(self, real: float) -> Multiplier:
        """A factor between scales; raises `UnsupportedModelError` where it is out of all proportion."""
        found = multiplier_of(real) if math.isfinite(real) else None
        if found is None or found.shift > _LARGEST_SHIFT:
            raise refuse(self.op, "its output's scale is too small for its inputs'", "calibrate the model again")
        return found

    def same_quantization(self, *places: int) -> None:
        """Hold inputs to the output's scale and zero point, for operators that move bytes."""
        for place in places:
            tensor = self.activation(place)
            if tensor.scales != self.output.scales or tensor.zero_points != self.output.zero_points:
                raise refuse(self.op, "its input and output have different scales", _QUANTIZE)

    def expect(self, found: object, wanted: object, what: str) -> None:
        """Refuse where the file contradicts itself: C code reads and writes by these numbers."""
        if found != wanted:
            raise refuse(
                self.op, f"its {what} is {found}, and must be {wanted}", "the file is damaged: export it again"
            )

    def call(self, name: str, *arguments: str) -> str:
        """A statement: the kernel with the settings, further arguments, and the output."""
        return f"{name}({', '.join(('{p}', *arguments, self.out))});"

    @property
    def out(self) -> str:
        """The output's placeholder."""
        return f"{{t.{self.op.outputs[0]}}}"

    def arg(self, place: int) -> str:
        """An input's placeholder."""
        return f"{{t.{self.op.inputs[place]}}}"


def four(shape: tuple[int, ...], site: Site) -> tuple[int, ...]:
    """A shape with four dimensions, filled up with ones in front.

    Raises:
        UnsupportedModelError: it has more.
    """
    if len(shape) > 4:
        raise refuse(site.op, f"its shape {list(shape)} has more than four dimensions", _EXPORT)
    return (1,) * (4 - len(shape)) + tuple(shape)


def steps(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Elements from one index to the next along each dimension."""
    found = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        found[i] = found[i + 1] * shape[i + 1]
    return tuple(found)
