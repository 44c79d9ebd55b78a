"""Engine `c99`: the model runs in a board's firmware; here real numbers become its integers, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.firmware import MAX_FILE_BYTES, FirmwareTensor, unpack
from edgewise_protocol.manifest import Manifest, TensorSpec
from numpy.typing import NDArray

from edgewise_agent.config import GatewayConfig
from edgewise_agent.engines.base import Engine, Tensors, shape_fits
from edgewise_agent.engines.batches import run_fixed
from edgewise_agent.engines.errors import InferenceError, ModelFileError
from edgewise_agent.engines.quantize import Affine, dequantize, quantize
from edgewise_agent.gateway.board import Board
from edgewise_agent.gateway.claims import claim, release
from edgewise_agent.gateway.errors import BoardBusyError

_INT8: Final = np.dtype(np.int8)


class C99Engine(Engine):
    """A model in the firmware of the gateway's board.

    Args:
        model_path: a file of format `c99`.
        manifest: its bundle's; a tensor that is FP32 there is converted, one that is INT8 is not.
        gateway: how the board is reached.
        hold: keep the board for as long as this is open.

    Raises:
        ModelFileError: the file is damaged, has no image for the board, or has other tensors than the manifest.
    """

    def __init__(self, model_path: Path, manifest: Manifest, gateway: GatewayConfig, *, hold: bool = False) -> None:
        super().__init__(manifest)
        try:
            if model_path.stat().st_size > MAX_FILE_BYTES:
                raise ModelFileError(f"{model_path.name} is too long")
            file = unpack(model_path.read_bytes())
        except (OSError, ProtocolError) as error:
            raise ModelFileError(f"{model_path.name} cannot be read: {error}") from error
        self._taken = _match(manifest.inputs, file.firmware.inputs, "input")
        self._given = _match(manifest.outputs, file.firmware.outputs, "output")
        free = all(spec.shape and spec.shape[0] == -1 for spec in manifest.inputs)
        batches = {tensor.shape[0] for _, tensor in self._taken}
        if free and len(batches) != 1:
            raise ModelFileError(f"the firmware's inputs have different batches: {sorted(batches)}")
        self._batch = batches.pop() if free else None
        self._board = Board(gateway, file, hold=hold)
        try:
            claim(self._board.shared, manifest.model)
        except BoardBusyError:
            self._board.close()
            raise

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        return self._once(inputs) if self._batch is None else run_fixed(self._once, inputs, self._batch)

    def _once(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        request = b"".join(_to_board(spec, tensor, inputs[spec.name]) for spec, tensor in self._taken)
        answer = self._board.invoke(request)
        if len(answer) != sum(tensor.size for _, tensor in self._given):
            raise InferenceError(f"the board answered {len(answer)} bytes, which are not the model's outputs")
        found: Tensors = {}
        at = 0
        for spec, tensor in self._given:
            whole = np.frombuffer(answer, _INT8, tensor.size, at).reshape(tensor.shape)
            found[spec.name] = whole if spec.dtype == "INT8" else dequantize(whole, _affine(tensor))
            at += tensor.size
        return found

    def close(self) -> None:
        self._board.close()
        release(self._board.shared, self.manifest.model)


def _to_board(spec: TensorSpec, tensor: FirmwareTensor, array: NDArray[Any]) -> bytes:
    if spec.dtype != "INT8":
        array = quantize(array, _affine(tensor), _INT8, spec.name)
    return np.ascontiguousarray(array).tobytes()


def _affine(tensor: FirmwareTensor) -> Affine:
    return Affine(tensor.scale, tensor.zero_point)


def _match(
    specs: Sequence[TensorSpec], tensors: Sequence[FirmwareTensor], what: str
) -> list[tuple[TensorSpec, FirmwareTensor]]:
    """In the firmware's order; by name where the names are the same, by position otherwise."""
    by_name = {spec.name: spec for spec in specs}
    named = [by_name.get(tensor.name) for tensor in tensors]
    chosen = [spec for spec in named if spec is not None]
    pairs = list(zip(chosen if len(chosen) == len(tensors) else specs, tensors, strict=False))
    if len(specs) != len(tensors):
        raise ModelFileError(f"the manifest names {len(specs)} {what}s; the firmware has {len(tensors)}")
    for spec, tensor in pairs:
        if spec.dtype not in ("FP32", "INT8") or not shape_fits(spec.shape, tensor.shape):
            raise ModelFileError(
                f"{what} {spec.name!r} is {spec.dtype} {list(spec.shape)} in the manifest, INT8 {list(tensor.shape)} "
                "in the firmware"
            )
    return pairs
