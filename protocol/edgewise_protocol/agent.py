"""Agent bundles: the agent's own code as a bundle of kind `agent`. Pure.

A bundle holds wheels (PEP 427) and stands at `<channel>/edgewise-agent/<profile>/<number>.ewb`. The agent's
version is one of PEP 440; the bundle's number orders bundles for assignments and floors.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from edgewise_protocol.errors import MalformedError
from edgewise_protocol.manifest import AgentSpec

LAUNCHER_VERSION: Final = 1
"""What this software's launcher can start; an agent bundle names the least that it needs."""
AGENT_TOO_OLD_CODE: Final = "agent-too-old"
"""Why a device gets no new model: its agent is older than the fleet's minimum."""
_PART: Final = 1_000
_MAX_TEXT: Final = 64


def parse_version(text: str) -> Version | None:
    """A version of PEP 440, or None where the text is none: devices say it."""
    try:
        return Version(text) if 0 < len(text) <= _MAX_TEXT else None
    except InvalidVersion:
        return None


def is_older(agent_version: str, minimum: str) -> bool:
    """Whether an agent is older than a minimum. Without a minimum none is; a version that cannot be read is."""
    if not minimum:
        return False
    least, has = parse_version(minimum), parse_version(agent_version)
    return least is None or has is None or has < least


def bundle_number(agent_version: str) -> int:
    """The number of a final release's bundle: 1.2.3 is 1002003.

    Raises:
        MalformedError: the version is not a final release of three parts below 1,000; its number must be given.
    """
    version = parse_version(agent_version)
    if version is None or str(version) != version.base_version or version.epoch or len(version.release) > 3:
        raise MalformedError(f"{agent_version[:64]!r} is not a final release MAJOR.MINOR.PATCH: give its number")
    parts = (*version.release, 0, 0)[:3]
    if max(parts) >= _PART:
        raise MalformedError(f"{agent_version[:64]!r} has a part of {_PART} or more: give its number")
    number = (parts[0] * _PART + parts[1]) * _PART + parts[2]
    if number == 0:
        raise MalformedError("the version is zero: give its number")
    return number


def misfits(spec: AgentSpec, *, tags: Collection[str], python: str, launcher: int) -> tuple[str, ...]:
    """Reasons why an agent cannot run here; empty when it can.

    Args:
        tags: the interpreter's compatibility tags (PEP 425), `py3-none-any` among them.
        python: the interpreter's version, `3.11.2`.
        launcher: version of the launcher that started the agent, 0 for none.
    """
    reasons: list[str] = []
    if launcher < spec.launcher_min:
        has = f"this is version {launcher}" if launcher else "this agent was started without one"
        reasons.append(
            f"the agent {spec.version} needs edgewise-agent-launcher of version {spec.launcher_min}; {has}: "
            "start the agent by `edgewise-agent-launcher run`, and update the base installation"
        )
    try:
        if spec.requires_python and not SpecifierSet(spec.requires_python).contains(python, prereleases=True):
            reasons.append(f"the agent {spec.version} needs Python {spec.requires_python}; this is {python}")
    except InvalidSpecifier:
        reasons.append(f"the agent's requirement of Python, {spec.requires_python!r}, is not a version specifier")
    for wheel in spec.wheels:
        if not set(wheel.tags) & set(tags):
            reasons.append(
                f"{wheel.distribution} {wheel.version} is built for {', '.join(wheel.tags[:4])}, not for here"
            )
    return tuple(reasons)
