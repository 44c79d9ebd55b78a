"""The wheels that a board needs, all of them: requirements are followed until nothing is missing.

pip finds the files; which distributions are needed is decided here, by the board's environment markers and not
those of the machine that makes the package, and with what Debian gives in place of wheels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from edgewise_cli.agent_package.needs import Needs, StandIn
from edgewise_cli.agents import metadata_of, read_wheel
from edgewise_cli.errors import RefusedError

MAX_ROUNDS: Final = 12
MAX_WHEELS: Final = 200

Fetch = Callable[[Sequence[str]], Sequence[Path]]
"""Requirements to the files of wheels that meet them, one each."""


@dataclass(frozen=True)
class Wheel:
    """A wheel's file, and what its metadata say."""

    path: Path
    distribution: str
    version: str
    requires: tuple[str, ...]


def read(path: Path) -> Wheel:
    """A wheel; raises `FilesError`, `RefusedError`."""
    spec, _, _ = read_wheel(path)
    return Wheel(path, spec.distribution, spec.version, tuple(metadata_of(path).get("requires-dist", ())))


def collect(needs: Needs, fetch: Fetch, tell: Callable[[str], None]) -> tuple[Wheel, ...]:
    """Every wheel that the board needs, by name.

    Raises:
        RefusedError: two distributions ask for versions that exclude each other, or there is no end of them.
        CliError: what `fetch` raises.
    """
    stand_ins = {s.distribution: s for s in (needs.release.stand_ins if needs.release else ())}
    wheels: dict[str, Wheel] = {}
    for _ in range(MAX_ROUNDS):
        wanted = demand(needs.requirements, wheels, needs.environment, stand_ins)
        missing = [
            f"{name}{specifier}"
            for name, specifier in sorted(wanted.items())
            if name not in wheels or not specifier.contains(wheels[name].version, prereleases=True)
        ]
        if not missing:
            return tuple(wheels[name] for name in sorted(wanted))
        if len(wanted) > MAX_WHEELS:
            raise RefusedError(f"the agent needs more than {MAX_WHEELS} distributions; is a wheel's metadata wrong?")
        tell(f"{len(wanted)} distributions, {len(missing)} to fetch")
        for wheel in map(read, fetch(missing)):
            wheels[wheel.distribution] = wheel
    raise RefusedError(f"the requirements do not come to rest; the last asked for: {', '.join(missing)[:300]}")


def demand(
    roots: Sequence[str],
    wheels: Mapping[str, Wheel],
    environment: Mapping[str, str],
    stand_ins: Mapping[str, StandIn],
) -> dict[str, SpecifierSet]:
    """Distributions to versions that everything known so far allows. Pure.

    Raises:
        RefusedError: Debian's version of something does not do, or a requirement cannot be read.
    """
    wanted: dict[str, SpecifierSet] = {}
    seen: set[tuple[str, frozenset[str], str]] = set()
    queue = [("the package", text, frozenset({""})) for text in roots]
    while queue:
        asker, text, extras = queue.pop()
        try:
            need = Requirement(text)
        except InvalidRequirement as error:
            raise RefusedError(f"{asker} requires {text[:100]!r}, which is no requirement") from error
        if need.marker is not None and not any(need.marker.evaluate({**environment, "extra": e}) for e in extras):
            continue
        name = canonicalize_name(need.name)
        if name in stand_ins:
            _check_stand_in(stand_ins[name], need, asker)
            continue
        wanted[name] = wanted.get(name, SpecifierSet()) & need.specifier
        mine = frozenset({"", *need.extras})
        wheel = wheels.get(name)
        if wheel is None or (name, mine, wheel.version) in seen:
            continue
        seen.add((name, mine, wheel.version))
        queue += [(f"{name} {wheel.version}", more, mine) for more in wheel.requires]
    return wanted


def _check_stand_in(stand_in: StandIn, need: Requirement, asker: str) -> None:
    if not stand_in.any_version and not need.specifier.contains(stand_in.version, prereleases=True):
        raise RefusedError(
            f"{asker} requires {need}; on this board {stand_in.distribution} is Debian's {stand_in.version}"
        )
