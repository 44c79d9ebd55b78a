"""The graphs of `graphs.py` for every test in this folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

_NAME = "passes_onnx_graphs"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location(_NAME, Path(__file__).with_name("graphs.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules[_NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


graphs = sys.modules.get(_NAME) or _load()


@pytest.fixture(scope="session")
def cases() -> dict[str, Any]:
    """Every case, by name."""
    return {name: build() for name, build in graphs.CASES.items()}
