"""What every engine is: a model file that answers in the manifest's names, types and shapes.

An engine is used from one thread at a time. It checks its inputs and conforms its outputs
here, so that an engine's own file holds only what its runtime needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from edgewise_protocol.manifest import Manifest, TensorSpec
from numpy.typing import NDArray

from edgewise_agent.engines.dtypes import NUMPY, name_of
from edgewise_agent.engines.errors import InferenceError, InputError

Tensors = dict[str, NDArray[Any]]


class Engine(ABC):
    """A loaded model.

    Args:
        manifest: names, types and shapes as the client sees them.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._inputs = {spec.name: spec for spec in manifest.inputs}

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """Answer one request.

        Args:
            inputs: every input of the manifest, in its type and shape; -1 in a shape is free.

        Returns:
            every output of the manifest, C-contiguous, in its type and shape.

        Raises:
            InputError: a name, type or shape is not the manifest's.
            InferenceError: the runtime failed, or answered in another shape than promised.
        """
        check_inputs(self._inputs, inputs)
        found = self._run(inputs)
        return {spec.name: conform(spec, found[spec.name]) for spec in self.manifest.outputs}

    def warm_up(self) -> None:
        """Answer zeros once, so that the first request does not pay for lazy allocation."""
        self.infer(zeros(self.manifest.inputs))

    @abstractmethod
    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """Answer checked inputs, in any type that `conform` can make the manifest's."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the runtime's memory. The engine answers no more."""


def shape_fits(expected: Sequence[int], got: Sequence[int]) -> bool:
    """Whether a shape is an instance of another in which -1 is free."""
    return len(expected) == len(got) and all(e == g or (e == -1 and g >= 0) for e, g in zip(expected, got, strict=True))


def check_inputs(specs: Mapping[str, TensorSpec], inputs: Mapping[str, NDArray[Any]]) -> None:
    """Raise `InputError` unless `inputs` are exactly those of `specs`."""
    if inputs.keys() != specs.keys():
        raise InputError(f"the model takes the inputs {_names(specs)}; got {_names(inputs)}")
    for name, spec in specs.items():
        array = inputs[name]
        if array.dtype != NUMPY[spec.dtype]:
            raise InputError(f"input {name!r} is {spec.dtype}; got {name_of(array.dtype)}")
        if not shape_fits(spec.shape, array.shape):
            raise InputError(f"input {name!r} has the shape {list(spec.shape)}; got {list(array.shape)}")
        if array.size == 0:
            raise InputError(f"input {name!r} is empty: its shape is {list(array.shape)}")


def conform(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    """An output in the type of the manifest; `InferenceError` if its shape is not the manifest's.

    Only a change of float width is made here: what an engine gives for an integer or BOOL
    output must be of that very type already.
    """
    wanted = NUMPY[spec.dtype]
    if not shape_fits(spec.shape, array.shape):
        raise InferenceError(f"output {spec.name!r} should have the shape {list(spec.shape)}; got {list(array.shape)}")
    if array.dtype != wanted:
        if array.dtype.kind != "f" or wanted.kind != "f":
            raise InferenceError(f"output {spec.name!r} should be {spec.dtype}; got {name_of(array.dtype)}")
        array = array.astype(wanted)
    return np.ascontiguousarray(array).reshape(array.shape)


def zeros(specs: Sequence[TensorSpec]) -> Tensors:
    """Zeros for every input, one sample where the batch is free."""
    return {
        spec.name: np.zeros([1 if size == -1 else size for size in spec.shape], NUMPY[spec.dtype]) for spec in specs
    }


def _names(of: Mapping[str, Any]) -> str:
    return ", ".join(repr(str(name)[:80]) for name in sorted(of)) or "none"
