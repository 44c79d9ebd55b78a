"""Resolve `module:function` from a configuration.

This runs the operator's own code, as importing it would; configurations are trusted input.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgewise_trainer.errors import FactoryError, TrainerError


def is_reference(name: str) -> bool:
    """Whether `name` has the form `module:function`."""
    return ":" in name


def resolve(reference: str, folder: Path) -> Callable[..., Any]:
    """Import the function that `reference` names; modules in `folder` are found too.

    Raises:
        FactoryError: it cannot be imported, or is not callable.
    """
    module_name, _, function_name = reference.partition(":")
    if not module_name or not function_name.isidentifier():
        raise FactoryError(f"{reference[:200]!r} is not of the form 'module:function'")
    with _importable(folder):
        try:
            found = getattr(importlib.import_module(module_name), function_name)
        except (ImportError, AttributeError, SyntaxError, ValueError) as error:
            raise FactoryError(f"{reference!r} cannot be imported: {error}") from error
    if not callable(found):
        raise FactoryError(f"{reference!r} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def call(reference: str, function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Call a factory with options from the configuration; its errors become `FactoryError`."""
    try:
        return function(**options)
    except TrainerError:
        raise
    except Exception as error:
        raise FactoryError(f"{reference!r} failed: {type(error).__name__}: {error}") from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
