"""Fixtures of the tests over the whole main job: one fleet of real processes for each module."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]


def _load(name: str, path: Path) -> Any:
    """A module of the tests by its path: `importlib` import mode has no packages."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def bundles() -> Any:
    """The module `bundles`."""
    return _load("end_to_end_bundles", TESTS / "end_to_end" / "bundles.py")


@pytest.fixture(scope="session")
def fleets() -> Any:
    """The module `fleet`."""
    return _load("end_to_end_fleet", TESTS / "end_to_end" / "fleet.py")


@pytest.fixture(scope="session")
def training() -> Any:
    """The module with the training step by hand, which the agent's own tests use too."""
    return _load("end_to_end_training", TESTS / "agent" / "learning" / "conftest.py")


@pytest.fixture(scope="module")
def empty_fleet(tmp_path_factory: pytest.TempPathFactory, bundles: Any, fleets: Any) -> Iterator[Any]:
    """A founded fleet with no device. At its end every process must end in order, and none may have broken inside."""
    tools = _load("end_to_end_processes", TESTS / "end_to_end" / "processes.py")
    fleet = fleets.Fleet(tmp_path_factory.mktemp("fleet"), tools, bundles)
    try:
        fleet.found()
        yield fleet
    finally:
        ended = fleet.end()
    for name, (status, log) in ended.items():
        assert status == 0, f"{name} did not end in order ({status}): {log[-2000:]}"
        assert "Traceback" not in log and '"trace"' not in log, f"{name} broke inside: {log[-6000:]}"
