"""Reads documentation pages: the blocks that a reader would type, and what the page says should come of them.

A fenced block of `sh` is commands; one of `python` is a program. A comment right after a block,
`<!-- expect: REGEX -->`, names what the block's output must hold. `<!-- prepare` up to `-->` are
commands that a page takes for granted. Readers see neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<kind>[a-z]*)[^\n]*\n(?P<body>.*?)^(?P=indent)```[ ]*$", re.MULTILINE | re.DOTALL
)
_EXPECT = re.compile(r"\s*<!-- expect: (?P<pattern>.*?) -->")
_PREPARE = re.compile(r"^<!-- prepare\n(?P<body>.*?)^-->$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:edgewise|edgewise-agent|edgewise-server|edgewise-agent-launcher) [^`]+)`")
_INDENTED = re.compile(r"(?:^(?: {4}|\t)(?:\./|\$ |edgewise|sudo |pip ).*\n)+", re.MULTILINE)
RUN = ("sh", "python")


@dataclass(frozen=True)
class Block:
    """A block that is run."""

    page: str
    line: int
    kind: str
    text: str
    expect: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def all_pages() -> list[Path]:
    """README and every page of docs/, without the decisions, which describe and instruct nobody."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found += sorted(p for folder in ("deploy", "examples") for p in (ROOT / folder).rglob("*.md"))
    return [page for page in found if "adr" not in page.relative_to(ROOT).parts]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that are run, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _PREPARE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(name_of(page), line, "sh", match["body"], ()))
    for match in _FENCE.finditer(text):
        if match["kind"] not in RUN:
            continue
        expect, at = [], match.end()
        while comment := _EXPECT.match(text, at):
            expect.append(comment["pattern"])
            at = comment.end()
        indent = len(match["indent"])
        body = "".join(line[indent:] if line.strip() else line for line in match["body"].splitlines(keepends=True))
        found.append(Block(name_of(page), text.count("\n", 0, match.start()) + 1, match["kind"], body, tuple(expect)))
    return sorted(found, key=lambda block: block.line)


def loose_commands(page: Path) -> list[str]:
    """Commands in indented blocks, which nothing runs."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [match.group().strip() for match in _INDENTED.finditer(text)]


def mentions(page: Path) -> Iterator[str]:
    """Commands that prose mentions in backticks."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for match in _INLINE.finditer(text):
        yield " ".join(match.group(1).split())
