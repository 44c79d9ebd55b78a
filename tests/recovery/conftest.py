"""What the drill shares with the other tests: the fleet in the open, its bundles, and the thief."""

from __future__ import annotations

import importlib.util
import sys
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
    """The module `bundles` of the end-to-end tests."""
    return _load("end_to_end_bundles", TESTS / "end_to_end" / "bundles.py")


@pytest.fixture(scope="session")
def tools() -> Any:
    """The module `processes` of the end-to-end tests."""
    return _load("end_to_end_processes", TESTS / "end_to_end" / "processes.py")


@pytest.fixture(scope="session")
def fleets() -> Any:
    """The module `fleet` of the end-to-end tests."""
    return _load("end_to_end_fleet", TESTS / "end_to_end" / "fleet.py")


@pytest.fixture(scope="session")
def secured() -> Any:
    """The module `secured` of the end-to-end tests."""
    return _load("end_to_end_secured", TESTS / "end_to_end" / "secured.py")


@pytest.fixture(scope="session")
def attacker() -> Any:
    """The module `attacker` of the attacks."""
    return _load("attacks_attacker", TESTS / "attacks" / "attacker.py")


@pytest.fixture(scope="session")
def crowds() -> Any:
    """The module `crowd`."""
    return _load("recovery_crowd", TESTS / "recovery" / "crowd.py")
