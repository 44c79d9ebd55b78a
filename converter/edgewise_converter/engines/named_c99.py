"""C99 models built for this host, and run in a process of their own: the numbers of the board, not its speed."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.firmware import FirmwareTensor, unpack
from edgewise_protocol.manifest import TensorSpec
from numpy.typing import NDArray

from edgewise_converter.c99.affine import dequantize, quantize
from edgewise_converter.c99.link import ProcessLink
from edgewise_converter.c99.toolchain import compile_program
from edgewise_converter.engines.named import NamedModel, Tensors, common_batch, with_free_batch
from edgewise_converter.errors import ModelFileError

_ANSWER_S: Final = 60.0
_OWN: Final = frozenset({"model.c", "firmware.c", "board_posix.c"})


class NamedC99(NamedModel):
    """A file of format `c99`, its sources compiled by the host's `gcc`.

    Args:
        data: the file.
        integers: inputs that the client gives as the file's own integers.

    Raises:
        ModelFileError: it is damaged.
        ToolchainError: there is no compiler, or it refuses the sources.
        FirmwareRunError: the program does not answer.
    """

    engine = "c99"
    version = "1"
    precision = "int8"

    def __init__(self, data: bytes, integers: frozenset[str] = frozenset()) -> None:
        try:
            file = unpack(data)
        except ProtocolError as error:
            raise ModelFileError(str(error)) from error
        self._firmware, self._integers = file.firmware, integers
        posix = (Path(__file__).parents[1] / "c99" / "firmware" / "board_posix.c").read_bytes()
        kept = {n: d for n, d in file.members.items() if n.endswith(".h") or n in _OWN}
        program = compile_program({**kept, "board_posix.c": posix})
        with tempfile.TemporaryDirectory(prefix="edgewise-c99-") as folder:
            path = Path(folder) / "firmware"
            path.write_bytes(program)
            path.chmod(0o700)
            self._link = ProcessLink([str(path)], "the model built for this host", _ANSWER_S, self._firmware)
            self._close = weakref.finalize(self, self._link.close)
            self._link.hello()
        tensors = (*self._firmware.inputs, *self._firmware.outputs)
        self.batch = common_batch([tensor.shape for tensor in tensors])
        self.inputs = tuple(self._spec(tensor, tensor.name in integers) for tensor in self._firmware.inputs)
        self.outputs = tuple(self._spec(tensor, integer=False) for tensor in self._firmware.outputs)

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        request = b"".join(self._to_file(tensor, feeds[tensor.name]).tobytes() for tensor in self._firmware.inputs)
        answer, found, at = self._link.invoke(request), dict[str, NDArray[Any]](), 0
        for tensor in self._firmware.outputs:
            whole = np.frombuffer(answer, np.int8, tensor.size, at).reshape(tensor.shape)
            found[tensor.name] = dequantize(whole, tensor)
            at += tensor.size
        return found

    def steps(self) -> dict[str, float]:
        """See `NamedModel.steps`."""
        return {tensor.name: tensor.scale for tensor in self._firmware.outputs}

    def _to_file(self, tensor: FirmwareTensor, array: NDArray[Any]) -> NDArray[Any]:
        whole = np.ascontiguousarray(array).reshape(tensor.shape)
        return whole if tensor.name in self._integers else quantize(whole, tensor)

    def _spec(self, tensor: FirmwareTensor, integer: bool) -> TensorSpec:
        dtype = "INT8" if integer else "FP32"
        return TensorSpec(name=tensor.name, dtype=dtype, shape=with_free_batch(tensor.shape, self.batch))  # type: ignore[arg-type]
