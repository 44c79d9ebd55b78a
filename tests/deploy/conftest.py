"""The server's test kit, by path: `importlib` import mode has no packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def server_kit() -> Any:
    """The module of the server tests' shared parts."""
    name, path = "deploy_server_kit", Path(__file__).resolve().parents[1] / "fleet_server" / "conftest.py"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]
