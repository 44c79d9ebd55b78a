"""Danger: an error that does not say what to install, or Debian taken from elsewhere than the machine's own sources."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
from edgewise_converter.errors import ProofToolsError
from edgewise_converter.proof import tools
from edgewise_converter.proof.recipe import Recipe, recipe_of
from edgewise_converter.proof.tools import Source, choose
from edgewise_profiles import catalogue

A, B, C = "http://a.example/debian", "http://b.example/debian-security", "http://c.example/tool"


@pytest.fixture
def recipe() -> Recipe:
    return recipe_of(catalogue.load("raspberry-pi-4-64"), {})


@pytest.mark.parametrize(
    ("suite", "codename", "expected"),
    [("bookworm", "bookworm", [A]), ("trixie", "bookworm", [A]), ("trixie", "", []), ("bookworm", "", [A])],
)
def test_debian_comes_from_apts_own_sites(suite: str, codename: str, expected: list[str]) -> None:
    sources = [
        Source(A, "bookworm", "main"),
        Source(A, "bookworm", "contrib"),
        Source(B, "bookworm-security", "main"),
        Source(C, "tool-bookworm", "main"),
    ]
    assert choose(sources, suite, codename) == expected


def test_a_mirror_that_is_named_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tools.MIRROR, C)
    assert tools.debian_sources("bookworm", A).split()[-3:] == [A, "bookworm", "main"]
    assert tools.debian_sources("bookworm").split()[-3:] == [C, "bookworm", "main"]
    with pytest.raises(ProofToolsError, match="no URL"):
        tools.debian_sources("bookworm", "deb [trusted=yes] x")


def test_a_machine_without_debian_is_told_to_name_a_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tools.MIRROR, raising=False)
    monkeypatch.setattr(tools, "_apt_sources", lambda: [Source(C, "noble", "main")])
    monkeypatch.setattr(tools, "_release_fields", lambda: {"ID": "ubuntu", "VERSION_CODENAME": "noble"})
    with pytest.raises(ProofToolsError, match="--mirror"):
        tools.debian_sources("bookworm")


def test_everything_that_is_missing_is_named_at_once(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def which(_name: str, **_options: Any) -> None:
        return None

    monkeypatch.setattr(shutil, "which", which)
    with pytest.raises(ProofToolsError, match="sudo apt-get install mmdebstrap apt util-linux qemu-user-static"):
        tools.check_builder(recipe)
    with pytest.raises(ProofToolsError, match="unshare is not installed: sudo apt-get install util-linux"):
        tools.program("unshare")


def test_building_without_root_is_refused_before_anything_is_fetched(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "program", lambda name: name)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ProofToolsError, match="needs root"):
        tools.check_builder(recipe)
