"""Fixtures of the kills: a site with a broker, on either database."""

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
def tools() -> SimpleNamespace:
    """`.server` (the server's test kit), `.processes`, `.site`."""
    return SimpleNamespace(
        server=_load("server_kills_server_kit", TESTS / "fleet_server" / "conftest.py"),
        processes=_load("server_kills_processes", TESTS / "end_to_end" / "processes.py"),
        site=_load("server_kills_site", TESTS / "server_kills" / "site.py"),
    )


@pytest.fixture(scope="module")
def cluster(tools: SimpleNamespace) -> Iterator[Any]:
    """A PostgreSQL server of this module's own."""
    made = tools.server.Cluster()
    yield made
    made.close()


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def new_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Makes an empty database of either kind; its URL."""
    if request.param == "postgresql":
        cluster = request.getfixturevalue("cluster")
        return lambda: str(cluster.make())
    return lambda: f"sqlite:///{tmp_path_factory.mktemp('database') / 'server.db'}"


@pytest.fixture(scope="module")
def make_site(
    tools: SimpleNamespace, new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Any]]:
    """Makes a site on a database of its own: three devices that run version 1, and a server that does not run yet."""
    opened: list[Callable[[], object]] = []

    def make() -> Any:
        folder = tmp_path_factory.mktemp("site")
        broker = tools.processes.Mosquitto(folder)
        broker.start()
        opened.append(broker.process.stop)
        site = tools.site.Site(folder, tools.server, broker, tools.processes.free_port(), new_database())
        opened.append(site.close)
        site.add_devices("cam-1", "cam-2", "cam-3")
        return site

    yield make
    for close in reversed(opened):
        close()
