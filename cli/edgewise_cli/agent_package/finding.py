"""Wheels for a board: from a folder by their file names, or from a package index by pip."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from edgewise_cli.agent_package.needs import OWN, Needs
from edgewise_cli.agent_package.pip import pip
from edgewise_cli.errors import MissingError, RefusedError, UnreachableError

MAX_FILES: Final = 10_000
_NONE = re.compile(r"No matching distribution found for ([^\s(]+)")
_OFFLINE = re.compile(r"NewConnectionError|NameResolutionError|Temporary failure|ConnectTimeout|Max retries")


class Finder:
    """Finds wheels for a board.

    Args:
        work: a folder for what is downloaded.
        folders: looked through first.
        index: whether an index is asked for what they lack; never for our own distributions.
    """

    def __init__(
        self, needs: Needs, work: Path, folders: Sequence[Path], index: bool, tell: Callable[[str], None]
    ) -> None:
        self._needs, self._work, self._index, self._tell = needs, work, index, tell
        self._folders = folders
        self._rank = {tag: rank for rank, tag in enumerate(tags(needs))}

    def fetch(self, requirements: Sequence[str]) -> Sequence[Path]:
        """One wheel each.

        Raises:
            MissingError: there is none for this board; the message says of what, and what to do.
            UnreachableError: the index cannot be reached.
        """
        found: list[Path] = []
        left: list[str] = []
        for text in requirements:
            here = self._here(Requirement(text))
            if here is not None:
                found.append(here)
            elif self._index and canonicalize_name(Requirement(text).name) not in OWN:
                left.append(text)
            else:
                raise missing(text, self._needs, self._index)
        return [*found, *(self._download(left) if left else ())]

    def _here(self, need: Requirement) -> Path | None:
        """The newest wheel in the folders that does, and of those the one with the most particular tag."""
        best: tuple[Version, int, str] | None = None
        place: Path | None = None
        for folder in self._folders:
            for path in sorted(folder.glob("*.whl"))[:MAX_FILES]:
                try:
                    name, version, _, of = parse_wheel_filename(path.name)
                except InvalidWheelFilename:
                    continue
                ranks = [self._rank[tag] for tag in of if tag in self._rank]
                if name != canonicalize_name(need.name) or not ranks:
                    continue
                if not need.specifier.contains(version, prereleases=True):
                    continue
                order = (version, -min(ranks), path.name)
                if best is None or order > best:
                    best, place = order, path
        return place

    def _download(self, requirements: Sequence[str]) -> Sequence[Path]:
        needs = self._needs
        into = self._work / f"round-{len(list(self._work.glob('round-*')))}"
        into.mkdir(parents=True)
        options = ["--no-deps", "--only-binary=:all:", f"--dest={into}"]
        options += [f"--platform={tag}" for tag in needs.platforms]
        options += [f"--python-version={needs.python}", "--implementation=cp"]
        options += [f"--abi={abi}" for abi in (needs.abi, "abi3", "none")]
        self._tell(f"fetching {', '.join(requirements)}"[:100])
        try:
            pip(["download", *options, *requirements], f"fetching {', '.join(requirements)}"[:200])
        except RefusedError as error:
            raise _translated(str(error), needs) from error
        return sorted(into.glob("*.whl"))


def tags(needs: Needs) -> list[Tag]:
    """Tags of wheels that run on the board, the most particular first. Pure."""
    major, minor = needs.python.split(".")
    version = (int(major), int(minor))
    return [
        *cpython_tags(version, abis=[needs.abi], platforms=needs.platforms),
        *compatible_tags(version, interpreter=needs.abi, platforms=needs.platforms),
    ]


def missing(requirement: str, needs: Needs, index: bool) -> MissingError:
    """That there is no wheel, and what to do."""
    name = Requirement(requirement).name
    if index and canonicalize_name(name) not in OWN:
        mend = "Build one and give its folder with --wheels, or take a profile with other engines"
    else:
        mend = (
            f"Put one into the folder of --wheels: pip download {name} --no-deps --only-binary=:all: "
            f"--platform {needs.platforms[0]} --python-version {needs.python}"
        )
    return MissingError(
        f"there is no wheel of {requirement} for Python {needs.python} on {needs.profile.id} "
        f"({', '.join(needs.platforms[:3])}, ...). {mend}.",
        code="wheel-missing",
        details={"requirement": requirement, "python": needs.python, "platforms": list(needs.platforms)},
    )


def _translated(said: str, needs: Needs) -> MissingError | UnreachableError | RefusedError:
    if _OFFLINE.search(said):
        return UnreachableError(f"the package index cannot be reached: {said[-300:]}")
    if found := _NONE.search(said):
        return missing(found[1], needs, index=True)
    return RefusedError(said, code="wheel-missing")
