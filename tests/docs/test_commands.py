"""Danger: a page tells people to type what does not work, or no longer exists.

Every fenced `sh` and `python` block of README, docs/, deploy/ and examples/ is run by a session
below, in the order of the page; a new page must be put into one.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent


def _load(name: str) -> Any:
    full = f"docs_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, HERE / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[full] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[full]


pages, sessions = _load("pages"), _load("sessions")

SESSIONS: dict[str, tuple[str, ...]] = {
    "walk": (
        "docs/getting-started.md",
        "docs/guides/rollouts.md",
        "docs/guides/federated.md",
        "docs/guides/publish.md",
        "docs/guides/proof.md",
        "docs/guides/devices.md",
    ),
    "convert": ("docs/guides/convert.md", "docs/guides/microcontrollers.md"),
    "board": ("docs/guides/agent.md",),
    "bench": ("docs/guides/bench.md",),
    "production": ("docs/operating/production.md", "docs/operating/recovery.md"),
    "survival": ("docs/operating/survival.md",),
}
"""Pages that are run one after another in one shell."""

INSTALLS = {"board": "agent", "production": "server,cli"}
"""Sessions in which pip installs an extra of the workspace."""

ELSEWHERE = {
    "README.md": "tests/end_to_end/test_demo.py runs ./scripts/demo; ./scripts/test is what runs this",
}


def _blocks(names: tuple[str, ...]) -> list[Any]:
    return [block for name in names for block in pages.blocks(pages.ROOT / name)]


def test_every_page_with_commands_is_in_a_session() -> None:
    covered = {name for names in SESSIONS.values() for name in names} | set(ELSEWHERE)
    missing = [pages.name_of(page) for page in pages.all_pages() if pages.blocks(page)]
    assert sorted(set(missing) - covered) == []
    assert all((pages.ROOT / name).is_file() for name in covered)


def test_the_readme_has_no_other_commands_than_the_two() -> None:
    words = {
        line.split("#")[0].strip()
        for block in pages.blocks(pages.ROOT / "README.md")
        for line in block.text.splitlines()
    }
    assert words - {""} == {"./scripts/demo", "./scripts/test"}


def test_no_page_hides_commands_in_an_indented_block() -> None:
    loose = {pages.name_of(page): found for page in pages.all_pages() if (found := pages.loose_commands(page))}
    assert loose == {}


@pytest.mark.slow
@pytest.mark.timeout(sessions.SESSION_S + 60)
@pytest.mark.parametrize("session", SESSIONS)
def test_the_commands_of_the_pages_work(session: str, tmp_path: Path) -> None:
    for program in ("unshare", "ip", "mosquitto", "curl"):
        assert shutil.which(program) or Path(f"/usr/sbin/{program}").exists(), f"{program} is not installed"
    found = _blocks(SESSIONS[session])
    env = {}
    if extra := INSTALLS.get(session):
        wheels = tmp_path / "wheels"
        wheels.mkdir()
        env = sessions.wheelhouse(wheels, pages.ROOT, extra)
    folder = tmp_path / "page"
    folder.mkdir()
    printed = sessions.run(found, folder, pages.ROOT, **env)
    for block in found:
        for pattern in block.expect:
            assert re.search(pattern, printed[block.name]), (
                f"{block.name} should print {pattern!r}: {printed[block.name]}"
            )
