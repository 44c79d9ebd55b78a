"""Fixtures of the delivery tests: a small fleet whose broker, server and disks fail."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
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
def tools() -> Any:
    """The module `processes` of the end-to-end tests."""
    return _load("end_to_end_processes", TESTS / "end_to_end" / "processes.py")


@pytest.fixture(scope="session")
def delivery() -> Any:
    """The module `fleet`."""
    return _load("delivery_fleet", TESTS / "delivery" / "fleet.py")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tools: Any, delivery: Any) -> Iterator[Any]:
    """One running world for the tests of a module: each leaves it settled."""
    world = delivery.World(tmp_path_factory.mktemp("delivery"), tools)
    try:
        world.start()
        yield world
    finally:
        world.end()


@pytest.fixture
def make_world(tmp_path: Path, tools: Any, delivery: Any) -> Iterator[Callable[..., Any]]:
    """Makes and starts a world of other sizes; ends it."""
    made: list[Any] = []

    def make(**options: Any) -> Any:
        world = delivery.World(tmp_path, tools, **options)
        made.append(world)
        world.start()
        return world

    yield make
    for world in made:
        world.end()


@pytest.fixture(scope="session")
def bundles() -> Any:
    """The module `bundles` of the end-to-end tests."""
    return _load("end_to_end_bundles", TESTS / "end_to_end" / "bundles.py")


@pytest.fixture(scope="module")
def empty_fleet(tmp_path_factory: pytest.TempPathFactory, tools: Any, bundles: Any) -> Iterator[Any]:
    """A founded fleet of real agents, with no device."""
    fleets = _load("end_to_end_fleet", TESTS / "end_to_end" / "fleet.py")
    fleet = fleets.Fleet(tmp_path_factory.mktemp("fleet"), tools, bundles)
    try:
        fleet.found()
        yield fleet
    finally:
        ended = fleet.end()
    for name, (_, log) in ended.items():
        assert "Traceback" not in log, f"{name} broke inside: {log[-6000:]}"


@pytest.fixture
def postgresql() -> Iterator[Any]:
    """A PostgreSQL of its own: `.url`, `.stop()`, `.start()`; skips where it is not installed."""
    secured = _load("end_to_end_secured", TESTS / "end_to_end" / "secured.py")
    if not secured.has_postgresql():
        pytest.skip("no PostgreSQL: install its server programs (initdb, pg_ctl, createdb)")
    cluster = secured.Cluster()
    data = f"{cluster._folder}/data"
    options = f"-k {cluster._folder} -c listen_addresses= -c max_connections=60"
    with cluster as url:
        yield SimpleNamespace(
            url=url,
            stop=lambda: cluster._run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"),
            start=lambda: cluster._run(
                "pg_ctl", "-D", data, "-l", f"{cluster._folder}/log", "-o", options, "-w", "start"
            ),
        )
