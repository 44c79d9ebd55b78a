"""Danger: prose names a command or an option that is not there, and a reader loses an hour."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from edgewise_agent.__main__ import _parser as agent_parser
from edgewise_cli.app import app
from edgewise_server.__main__ import _parser as server_parser

HERE = Path(__file__).resolve().parent


def _pages() -> Any:
    if "docs_pages" not in sys.modules:
        spec = importlib.util.spec_from_file_location("docs_pages", HERE / "pages.py")
        assert spec is not None and spec.loader is not None
        sys.modules["docs_pages"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["docs_pages"]


def _click_fault(words: list[str]) -> str:
    """What is wrong with a mention of `edgewise ...`; empty if nothing is."""
    commands: list[Any] = [typer.main.get_command(app)]
    for position, word in enumerate(words):
        if word.startswith("-"):
            break
        groups = [c for c in commands if hasattr(c, "commands")]
        if not groups:
            break
        named = word.split("|")
        if named[0].isupper() or named[0] in ("...", "…"):
            return ""
        unknown = [n for n in named for g in groups if n not in g.commands]
        if unknown:
            return f"{' '.join(['edgewise', *words[:position]])} has no command {unknown[0]!r}"
        commands = [g.commands[n] for g in groups for n in named]
    known = {o for c in commands for p in c.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    wrong = [w for w in _options(words) if w not in known]
    return f"edgewise {' '.join(words)}: no option {wrong[0]}" if wrong else ""


def _argparse_fault(name: str, parser: argparse.ArgumentParser, words: list[str]) -> str:
    for word in words:
        nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if word.startswith("-") or not nested or word in ("...", "…") or word.isupper():
            break
        if word not in nested[0].choices:
            return f"{name} has no command {word!r}"
        parser = nested[0].choices[word]
    known = {option for action in parser._actions for option in action.option_strings}
    wrong = [w for w in _options(words) if w not in known]
    return f"{name} {' '.join(words)}: no option {wrong[0]}" if wrong else ""


def _options(words: list[str]) -> list[str]:
    found = [w.strip("[]").partition("=")[0] for w in words]
    return [w for w in found if w.startswith("-") and w.strip("-")]


def fault(mention: str) -> str:
    name, *words = mention.split()
    if name == "edgewise":
        if words[:1] == ["server"]:
            return _argparse_fault("edgewise-server", server_parser(), words[1:])
        return _click_fault(words)
    if name in ("edgewise-agent", "edgewise-server"):
        return _argparse_fault(name, agent_parser() if name == "edgewise-agent" else server_parser(), words)
    return ""


def test_every_command_that_the_pages_mention_exists() -> None:
    found = _pages()
    faults = {
        f"{found.name_of(page)}: {mention}": wrong
        for page in found.all_pages()
        for mention in found.mentions(page)
        if (wrong := fault(mention))
    }
    assert faults == {}


@pytest.mark.parametrize(
    "mention",
    [
        "edgewise fly",
        "edgewise rollout pause|melt R",
        "edgewise status --colour",
        "edgewise-agent dance",
        "edgewise-server run --tls",
    ],
)
def test_a_wrong_mention_is_found(mention: str) -> None:
    assert fault(mention)


@pytest.mark.parametrize("mention", ["edgewise rollout pause|resume|abort ROLLOUT", "edgewise-agent run --state DIR"])
def test_a_right_mention_is_not(mention: str) -> None:
    assert fault(mention) == ""
