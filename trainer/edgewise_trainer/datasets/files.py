"""A data set from an .npz or .safetensors file, by path.

The file holds either `x` and `y`, which are split here, or `x_train`, `y_train`, `x_test`
and `y_test`. Integer samples become float32 unscaled; normalisation belongs to the model.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edgewise_trainer.config import Seed
from edgewise_trainer.datasets.dataset import Dataset, stratified_split
from edgewise_trainer.errors import DataError
from edgewise_trainer.strict import read_section

MAX_FILE_BYTES: Final = 8 << 30
_PARTS: Final = ("x_train", "y_train", "x_test", "y_test")


class FileOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`[data.options]` of `file`."""

    path: str
    """Relative paths start from the configuration's folder."""
    labels: tuple[str, ...] = ()
    """Names of the classes; by default their numbers."""
    add_channel: bool = False
    """Give images of shape (N, H, W) a channel: (N, 1, H, W)."""
    test_fraction: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    seed: Seed = 0


def load_file(options: dict[str, Any], folder: Path) -> Dataset:
    """Read the file that the options name.

    Raises:
        DataError: it cannot be read, is too large, or lacks an array.
    """
    chosen = read_section(options, FileOptions, "[data.options] of file")
    path = folder / chosen.path
    arrays = read_arrays(path)
    if all(name in arrays for name in _PARTS):
        x_train, y_train, x_test, y_test = (arrays[name] for name in _PARTS)
    elif "x" in arrays and "y" in arrays:
        x, y = arrays["x"], arrays["y"]
        if x.ndim < 1 or y.shape != x.shape[:1]:
            raise DataError(f"{path.name}: x has shape {x.shape} and y {y.shape}; y must be (N,)")
        train, test = stratified_split(_classes(y, path.name), chosen.test_fraction, chosen.seed)
        x_train, y_train, x_test, y_test = x[train], y[train], x[test], y[test]
    else:
        raise DataError(f"{path.name} holds {sorted(arrays)}; it needs x and y, or {', '.join(_PARTS)}")
    classes = [_classes(y_train, path.name), _classes(y_test, path.name)]
    highest = max(int(part.max(initial=0)) for part in classes)
    return Dataset(
        x_train=_samples(x_train, chosen.add_channel, path.name),
        y_train=classes[0],
        x_test=_samples(x_test, chosen.add_channel, path.name),
        y_test=classes[1],
        labels=chosen.labels or tuple(str(n) for n in range(highest + 1)),
    )


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz (never unpickled) or .safetensors file."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path.name} has more than {MAX_FILE_BYTES} bytes")
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.numpy import load_file as load_safetensors

            try:
                return dict(load_safetensors(path))
            except SafetensorError as error:
                raise DataError(f"{path.name} is not a safetensors file: {error}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"the data file {path.name} cannot be read: {error}") from error
    raise DataError(f"{path.name}: only .npz and .safetensors files can be read")


def _classes(y: NDArray[Any], name: str) -> NDArray[np.int64]:
    if y.dtype.kind not in "iu":
        raise DataError(f"{name}: classes must be integers, not {y.dtype}")
    return y.astype(np.int64)


def _samples(x: NDArray[Any], add_channel: bool, name: str) -> NDArray[np.float32]:
    if x.dtype.kind not in "iuf":
        raise DataError(f"{name}: samples must be numbers, not {x.dtype}")
    return (x[:, None] if add_channel else x).astype(np.float32)
