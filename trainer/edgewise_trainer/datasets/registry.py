"""Data sets by name: a table of built-in loaders, and `module:function`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from edgewise_trainer.datasets.dataset import Dataset
from edgewise_trainer.datasets.digits import load_digits
from edgewise_trainer.datasets.files import load_file
from edgewise_trainer.errors import DataError, FactoryError
from edgewise_trainer.factories import call, is_reference, resolve

LOADERS: Final[Mapping[str, Callable[[dict[str, Any], Path], Dataset]]] = {
    "digits": load_digits,
    "file": load_file,
}


def load(name: str, options: Mapping[str, Any] | None = None, *, folder: Path = Path()) -> Dataset:
    """Load a data set.

    Args:
        name: a key of `LOADERS`, or `module:function` that takes the options and returns a `Dataset`.
        options: as the loader defines them; unknown ones are refused.
        folder: where relative paths and modules start.

    Raises:
        DataError, ConfigError, FactoryError: see the loaders.
    """
    chosen = dict(options or {})
    if is_reference(name):
        found = call(name, resolve(name, folder), chosen)
        if not isinstance(found, Dataset):
            raise FactoryError(f"{name!r} returned {type(found).__name__}, not a Dataset")
        return found
    loader = LOADERS.get(name)
    if loader is None:
        raise DataError(f"there is no data set {name[:80]!r}; known: {', '.join(sorted(LOADERS))}, or module:function")
    return loader(chosen, folder)
