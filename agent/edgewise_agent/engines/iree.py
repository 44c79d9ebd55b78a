"""Engine `iree`: modules of native code that IREE has compiled ahead of time for this processor.

A module does not name its tensors: they are taken and given in the manifest's order. It refuses
a processor of another architecture when it is loaded; what its numbers are worth the self-test tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import iree.runtime as runtime
import numpy as np
from edgewise_protocol.manifest import Manifest
from numpy.typing import NDArray

from edgewise_agent.engines.base import Engine, Tensors
from edgewise_agent.engines.errors import EngineError, InferenceError, ModelFileError

ENTRY: Final = "model"
_FOREIGN: Final = (ValueError, RuntimeError, TypeError, KeyError, IndexError, OSError, MemoryError)


@contextmanager
def foreign_errors(kind: type[EngineError], what: str) -> Iterator[None]:
    """Turn the runtime's errors into `kind`, with the first 400 characters of what it says."""
    try:
        yield
    except _FOREIGN as error:
        raise kind(f"{what}: {str(error)[:400]}") from error


class IreeEngine(Engine):
    """A module, run in its caller's thread whatever `threads` says: small models lose on a pool."""

    def __init__(self, model_path: Path, manifest: Manifest, threads: int) -> None:
        super().__init__(manifest)
        with foreign_errors(ModelFileError, f"IREE cannot load {model_path.name}"):
            self._context: Any = runtime.SystemContext(config=runtime.Config("local-sync"))
            module = runtime.VmModule.copy_buffer(self._context.instance, model_path.read_bytes())
            self._context.add_vm_module(module)
            self._call: Any = self._context.modules[module.name][ENTRY]
        self._names = [spec.name for spec in manifest.outputs]

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        given = [np.ascontiguousarray(inputs[spec.name]) for spec in self.manifest.inputs]
        with foreign_errors(InferenceError, "IREE failed"):
            found = self._call(*given)
            answers = found if isinstance(found, tuple | list) else (found,)
            arrays = [np.array(answer.to_host()) for answer in answers]
        if len(arrays) != len(self._names):
            raise InferenceError(f"the module gives {len(arrays)} outputs; the manifest names {len(self._names)}")
        return dict(zip(self._names, arrays, strict=True))

    def close(self) -> None:
        self._call = self._context = None
