"""A model's state as named arrays: `p.<name>` parameters and `b.<name>` buffers.

The same names as in a training bundle, a round's weights and a device's update.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgewise_trainer.errors import WeightsError

PARAMETER: Final = "p."
BUFFER: Final = "b."
Weights = dict[str, NDArray[Any]]


def state_of(model: nn.Module) -> Weights:
    """Copies of the model's parameters and buffers."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in _tensors(model).items()}


def load_state(model: nn.Module, weights: Mapping[str, NDArray[Any]]) -> None:
    """Put `weights` into `model`.

    Raises:
        WeightsError: a tensor is missing or unknown, its shape or data type differs, or a value
            is not finite. The model is then unchanged.
    """
    tensors = _tensors(model)
    check_weights(weights, {name: _numpy_view(tensor) for name, tensor in tensors.items()})
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(np.array(weights[name], order="C")))


def check_weights(weights: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> None:
    """Raise `WeightsError` unless `weights` has exactly the names, shapes and types of `expected`, finite."""
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unknown:
        problem = f"lack {missing[0]!r}" if missing else f"hold {unknown[0][:120]!r}, which the model does not have"
        raise WeightsError(f"the weights {problem} ({len(missing)} missing, {len(unknown)} unknown)")
    for name, array in expected.items():
        given = weights[name]
        if given.shape != array.shape or given.dtype != array.dtype:
            raise WeightsError(
                f"{name} is {given.dtype} {list(given.shape)}; the model has {array.dtype} {list(array.shape)}"
            )
        if given.dtype.kind == "f" and not np.isfinite(given).all():
            raise WeightsError(f"{name} holds values that are not finite")


def encode(weights: Mapping[str, NDArray[Any]]) -> bytes:
    """Safetensors; equal weights give equal bytes."""
    from safetensors.numpy import save

    # Not np.ascontiguousarray, which turns a 0-d array into one of shape (1,).
    data: bytes = save({name: np.array(weights[name], order="C") for name in sorted(weights)})
    return data


def decode(data: bytes) -> Weights:
    """Read weights from safetensors.

    Raises:
        WeightsError: they are not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"these are not safetensors: {error}") from error


def digest(weights: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of the encoded weights."""
    return hashlib.sha256(encode(weights)).hexdigest()


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    named: dict[str, torch.Tensor] = {f"{PARAMETER}{name}": p for name, p in model.named_parameters()}
    return named | {f"{BUFFER}{name}": b for name, b in model.named_buffers()}


def _numpy_view(tensor: torch.Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()
