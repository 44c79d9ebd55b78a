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
    yield from _load_secured().alive(fleets.Fleet(tmp_path_factory.mktemp("fleet"), _tools(), bundles))


@pytest.fixture(scope="session")
def secured() -> Any:
    """The module `secured`."""
    return _load_secured()


@pytest.fixture(scope="session")
def processes() -> Any:
    """The module `processes`."""
    return _tools()


@pytest.fixture(scope="module")
def secured_fleet(tmp_path_factory: pytest.TempPathFactory, bundles: Any, fleets: Any, secured: Any) -> Iterator[Any]:
    """A founded fleet with no device, over Mosquitto with mutual TLS and an access list."""
    yield from secured.alive(secured.make(fleets, tmp_path_factory.mktemp("fleet"), _tools(), bundles))


@pytest.fixture(scope="module")
def secured_fleet_on_postgresql(
    tmp_path_factory: pytest.TempPathFactory, bundles: Any, fleets: Any, secured: Any
) -> Iterator[Any]:
    """The same over a PostgreSQL of its own."""
    if not secured.has_postgresql():
        pytest.skip("no PostgreSQL: install its server programs (initdb, pg_ctl, createdb)")
    with secured.Cluster() as url:
        made = secured.make(fleets, tmp_path_factory.mktemp("fleet"), _tools(), bundles, database_url=url)
        yield from secured.alive(made)


def _tools() -> Any:
    return _load("end_to_end_processes", TESTS / "end_to_end" / "processes.py")


def _load_secured() -> Any:
    return _load("end_to_end_secured", TESTS / "end_to_end" / "secured.py")
