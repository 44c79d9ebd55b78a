"""Modules compiled by IREE, in its runtime on the host. A module does not name its tensors: the caller does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from edgewise_protocol.manifest import TensorSpec

from edgewise_converter.engines.dtypes import NUMPY
from edgewise_converter.engines.named import NamedModel, Tensors, common_batch
from edgewise_converter.errors import EngineError
from edgewise_converter.libraries import need, quietly

ENTRY: Final = "model"
"""The function that is called: the name that our ONNX graphs bear."""
_FOREIGN: Final = (ValueError, RuntimeError, TypeError, KeyError, IndexError)


class NamedIree(NamedModel):
    """A module for the host's processor.

    Args:
        data: the module.
        inputs, outputs: its tensors, in the graph's order, as a client sees them.
        precision: of the graph that it was made from.

    Raises:
        EngineError: the runtime refuses it.
        MissingExtraError: the runtime is not installed.
    """

    engine = "iree"

    def __init__(self, data: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], precision: str):
        runtime = need("iree.runtime")
        self.version = str(need("importlib.metadata").version("iree-base-runtime"))
        self.inputs, self.outputs, self.precision = tuple(inputs), tuple(outputs), precision
        self.batch = common_batch([spec.shape for spec in (*inputs, *outputs)])
        try:
            with quietly():
                self._context = runtime.SystemContext(config=runtime.Config("local-sync"))
                module = runtime.VmModule.copy_buffer(self._context.instance, data)
                self._context.add_vm_module(module)
                self._call = self._context.modules[module.name][ENTRY]
        except _FOREIGN as error:
            raise EngineError(f"IREE {self.version} cannot load the module: {str(error)[:400]}") from error

    def _run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> Tensors:
        given = [np.ascontiguousarray(feeds[spec.name], NUMPY[spec.dtype]) for spec in self.inputs]
        try:
            found = self._call(*given)
            answers = found if isinstance(found, tuple | list) else (found,)
            arrays = [np.array(answer.to_host()) for answer in answers]
        except _FOREIGN as error:
            raise EngineError(f"IREE fails on the module: {str(error)[:400]}") from error
        if len(arrays) != len(self.outputs):
            raise EngineError(f"the module gives {len(arrays)} outputs; {len(self.outputs)} were expected")
        return {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}

    def steps(self) -> dict[str, float]:
        """None is known: a module's outputs are what its graph's are."""
        return {}
