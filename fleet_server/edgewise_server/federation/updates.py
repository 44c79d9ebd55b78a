"""Reads and checks weights: safetensors files of `p.*` and `b.*`, against the layout of the global ones.

A client's update is data from outside: names, shapes, dtypes and finiteness are checked before a number of
it reaches the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from edgewise_server.errors import InvalidError

T = TypeVar("T")
Vector = NDArray[np.float32]

_FLOAT: Final = "F32"
_KEPT: Final = frozenset({"I64", "I32"})
"""Counters such as `num_batches_tracked`: kept from the global weights, never averaged."""
MAX_TENSORS: Final = 4_000


class UpdateError(InvalidError):
    """An update does not match the global weights, or holds values that cannot be averaged."""

    code = "update-refused"


@dataclass(frozen=True, slots=True)
class Layout:
    """Order of the averaged tensors in a flat float32 vector: parameters first, then float buffers."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    order: tuple[str, ...]
    offsets: dict[str, int] = field(default_factory=dict)
    parameters: int = 0
    """Length of the leading part that holds `p.*`."""
    size: int = 0


def read_layout(path: Path) -> Layout:
    """The layout of a weights file.

    Raises:
        UpdateError: it is not a safetensors file of float32 `p.*` and float32 or integer `b.*`.
    """
    return _with(path, _layout)


def _layout(file: Any) -> Layout:
    names = list(file.keys())
    if not 1 <= len(names) <= MAX_TENSORS:
        raise UpdateError(f"a weights file of {len(names)} tensors; 1 to {MAX_TENSORS} are allowed")
    shapes, dtypes = {}, {}
    for name in names:
        piece = file.get_slice(name)
        shapes[name], dtypes[name] = tuple(piece.get_shape()), str(piece.get_dtype())
        if not (
            (name.startswith("p.") and dtypes[name] == _FLOAT)
            or (name.startswith("b.") and (dtypes[name] == _FLOAT or dtypes[name] in _KEPT))
        ):
            raise UpdateError(f"{name[:80]!r} of type {dtypes[name]} is neither a parameter nor a buffer")
    order = tuple(sorted((n for n in names if dtypes[n] == _FLOAT), key=lambda n: (not n.startswith("p."), n)))
    offsets, position, parameters = {}, 0, 0
    for name in order:
        offsets[name] = position
        position += int(np.prod(shapes[name], dtype=np.int64))
        if name.startswith("p."):
            parameters = position
    return Layout(shapes, dtypes, order, offsets, parameters, position)


def read_vector(path: Path, layout: Layout, out: Vector) -> None:
    """Read a file of exactly this layout into `out`, shape (layout.size,).

    Raises:
        UpdateError: it is not such a file.
    """

    def fill(file: Any) -> None:
        _check(file, layout)
        for name in layout.order:
            start = layout.offsets[name]
            tensor = file.get_tensor(name)
            out[start : start + tensor.size] = tensor.reshape(-1)

    _with(path, fill)


def check_update(path: Path, layout: Layout) -> None:
    """Check names, shapes and dtypes; raise `UpdateError` at the first difference."""
    _with(path, lambda file: _check(file, layout))


def write_weights(base: Path, layout: Layout, values: Vector) -> bytes:
    """Bytes of a weights file with `values`, and the integer buffers of the file `base`."""
    tensors: dict[str, NDArray[Any]] = {}
    for name in layout.order:
        shape = layout.shapes[name]
        start = layout.offsets[name]
        tensors[name] = values[start : start + int(np.prod(shape, dtype=np.int64))].reshape(shape)

    def keep(file: Any) -> None:
        for name in layout.shapes.keys() - set(layout.order):
            tensors[name] = file.get_tensor(name)

    _with(base, keep)
    return bytes(save({name: np.ascontiguousarray(t) if t.ndim else t for name, t in tensors.items()}))


def _check(file: Any, layout: Layout) -> None:
    names = set(file.keys())
    if names != layout.shapes.keys():
        odd = sorted(names ^ layout.shapes.keys())[0]
        raise UpdateError(f"the update {'holds' if odd in names else 'lacks'} {odd[:80]!r}")
    for name, shape in layout.shapes.items():
        piece = file.get_slice(name)
        if tuple(piece.get_shape()) != shape or str(piece.get_dtype()) != layout.dtypes[name]:
            raise UpdateError(
                f"{name[:80]!r} is {piece.get_dtype()} {tuple(piece.get_shape())} in the update, "
                f"and {layout.dtypes[name]} {shape} in the round's weights"
            )


def _with(path: Path, use: Callable[[Any], T]) -> T:
    try:
        with safe_open(path, framework="numpy") as file:
            return use(file)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise UpdateError(f"this is not a readable weights file: {error}") from error
