"""Danger: a room that reaches into another, so that a device would need the server's packages."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "edgewise_protocol": ("protocol", set()),
    "edgewise_profiles": ("firmware_profiles", set()),
    "edgewise_trainer": ("trainer", {"edgewise_protocol"}),
    "edgewise_agent": ("agent", {"edgewise_protocol"}),
    "edgewise_converter": ("converter", {"edgewise_protocol", "edgewise_profiles"}),
    "edgewise_server": ("fleet_server", {"edgewise_protocol", "edgewise_profiles"}),
    "edgewise_cli": (
        "cli",
        {"edgewise_protocol", "edgewise_profiles", "edgewise_trainer", "edgewise_converter"},
    ),
}
LAZY = {"edgewise_cli": {"edgewise_trainer", "edgewise_converter"}}
"""Imported only inside functions: they may be absent."""
NEVER_ON_A_DEVICE = {"torch", "fastapi", "starlette", "sqlalchemy", "sqlmodel", "pydantic", "mlflow", "onnx", "uvicorn"}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(), str(path))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / ROOMS[package][0] / package).rglob("*.py"))
    assert found, f"no modules of {package}"
    return found


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_imports_only_what_the_table_allows(package: str) -> None:
    allowed = ROOMS[package][1] | {package}
    for path in modules(package):
        ours = {name.split(".")[0] for name in imports(path)} & set(ROOMS)
        assert ours <= allowed, f"{path.relative_to(ROOT)} imports {sorted(ours - allowed)}"
        at_import = {name.split(".")[0] for name in imports(path, top_level_only=True)}
        assert not at_import & LAZY.get(package, set()), f"{path.relative_to(ROOT)} imports an optional room at the top"


@pytest.mark.parametrize("package", ["edgewise_agent", "edgewise_protocol", "edgewise_profiles"])
def test_nothing_heavy_reaches_a_device(package: str) -> None:
    for path in modules(package):
        heavy = {name.split(".")[0] for name in imports(path)} & NEVER_ON_A_DEVICE
        assert not heavy, f"{path.relative_to(ROOT)} imports {sorted(heavy)}"


PURE = [
    ("edgewise_server", "rollout"),
    ("edgewise_server", "drift"),
    ("edgewise_protocol", ""),
]
IO = {"socket", "sqlite3", "requests", "httpx", "paho", "subprocess", "asyncio", "threading", "sqlmodel", "sqlalchemy"}


@pytest.mark.parametrize(("package", "room"), PURE)
def test_a_pure_room_does_no_io(package: str, room: str) -> None:
    folder = ROOT / ROOMS[package][0] / package / room
    paths = sorted(folder.rglob("*.py"))
    assert paths, f"{folder} is empty"
    for path in paths:
        found = {name.split(".")[0] for name in imports(path)} & IO
        assert not found, f"{path.relative_to(ROOT)} imports {sorted(found)}"


def test_server_services_do_not_reach_up_into_transports() -> None:
    upward = {"edgewise_server.api", "edgewise_server.bridge", "edgewise_server.console", "edgewise_server.app"}
    below = [p for room in ("services", "models", "rollout", "drift", "federation", "trust", "pki")
             for p in (ROOT / "fleet_server" / "edgewise_server" / room).rglob("*.py")]  # fmt: skip
    assert below
    for path in below:
        found = {name for name in imports(path) if any(name == u or name.startswith(u + ".") for u in upward)}
        assert not found, f"{path.relative_to(ROOT)} imports {sorted(found)}"


def test_package_inits_define_nothing() -> None:
    for package in ROOMS:
        for path in modules(package):
            if path.name == "__init__.py":
                defined = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
                assert not defined, f"{path.relative_to(ROOT)} defines {defined[0].name}"


def test_modules_stay_readable() -> None:
    for package in ROOMS:
        for path in modules(package):
            lines = len(path.read_text().splitlines())
            assert lines <= 450 or "migrations" in path.parts, f"{path.relative_to(ROOT)} has {lines} lines: redraw it"
