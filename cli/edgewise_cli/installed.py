"""Parts of Edgewise that stand beside this one only where they are installed."""

from __future__ import annotations

import importlib
from types import ModuleType

from edgewise_cli.errors import NotInstalledError


def need(module: str, extra: str) -> ModuleType:
    """Import a module of another part.

    Raises:
        NotInstalledError: it, or something that it needs, is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NotInstalledError(
            f"this needs the part {extra!r}, which is not installed here ({error}): pip install 'edgewise[{extra}]'"
        ) from error
