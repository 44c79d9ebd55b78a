"""What the agent needs on a board: distributions, and what takes their place where there are no wheels. Pure.

32-bit ARM: PyPI has no wheels of NumPy, cffi, msgspec and httptools for it (2026-11). The first two come from
Debian, the others are built from their sources, which are pinned by digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgewise_profiles.schema import EngineName, Profile

from edgewise_cli.errors import RefusedError, UsageError

AGENT: Final = "edgewise-agent"
OWN: Final = (AGENT, "edgewise-protocol")
"""Never taken from an index: nobody else's distribution may stand in for ours."""
ENGINES: Final[dict[EngineName, tuple[str, str]]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "litert": ("litert", "ai-edge-litert"),
    "tflite-runtime": ("tflite-runtime", "tflite-runtime"),
    "iree": ("iree", "iree-base-runtime"),
}
"""An engine's extra of the agent, and the distribution of its runtime."""
NICE_TO_HAVE: Final = ("fast", "kll")
"""Extras that every board gets for which there are wheels."""
DEBIAN: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf"}
"""Debian's names of machines."""


@dataclass(frozen=True)
class StandIn:
    """A Debian package that takes the place of a distribution."""

    distribution: str
    version: str
    package: str
    module: str
    """What it lets Python import."""
    any_version: bool = False
    """It does whatever version is asked for."""


@dataclass(frozen=True)
class Source:
    """A source distribution to build a wheel from."""

    distribution: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Release:
    """What Debian gives that PyPI does not, for one machine and release."""

    suite: str
    python: str
    stand_ins: tuple[StandIn, ...]
    packages: tuple[str, ...]
    """The stand-ins, and what they need beside a system with Python."""
    sources: tuple[Source, ...]


RELEASES: Final = {
    "armv7l": Release(
        suite="bookworm",
        python="3.11",
        stand_ins=(
            StandIn("numpy", "1.24.2", "python3-numpy", "numpy"),
            # cryptography asks for 2.0 to be built with; what it imports is this module, unchanged since.
            StandIn("cffi", "1.15.1", "python3-cffi-backend", "_cffi_backend", any_version=True),
        ),
        packages=(
            *("libblas3", "libffi8", "libgfortran5", "liblapack3"),
            *("python3-cffi-backend", "python3-numpy", "python3-pkg-resources"),
        ),
        sources=(
            Source("httptools", "0.9.0", "d484ebb7e3a3f3597b0f645fbd1b85633674ca808c1f5ba11c2caf7c66f5c8b6"),
            Source("msgspec", "0.22.0", "0a13624a4969159fe35d8c2a3d377b2b61bbd8585e327440d5e52725affcce38"),
        ),
    )
}


@dataclass(frozen=True)
class Needs:
    """Of one board."""

    profile: Profile
    python: str
    """As 3.11."""
    engines: tuple[EngineName, ...]
    requirements: tuple[str, ...]
    """The roots, as pip takes them."""
    platforms: tuple[str, ...]
    """Tags of wheels that run there."""
    release: Release | None

    @property
    def bits(self) -> int:
        """Of a pointer there."""
        return self.profile.os.bits

    @property
    def abi(self) -> str:
        """As cp311."""
        return "cp" + self.python.replace(".", "")

    @property
    def environment(self) -> dict[str, str]:
        """What environment markers are judged by (PEP 508)."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.profile.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }


def needs(profile: Profile, python: str | None = None, engines: Sequence[str] = ()) -> Needs:
    """What the agent needs on the boards of a profile.

    Args:
        python: of the board, as 3.11; the profile's oldest by default.
        engines: those of the profile to install; by default all that it does not call optional.

    Raises:
        RefusedError: these boards run no agent.
        UsageError: an engine or a Python that is not for these boards.
    """
    if profile.machine not in DEBIAN:
        why = (
            "they run no Python: a gateway's agent brings them their models"
            if profile.os.bits == 32
            else f"there are no wheels of what the agent needs for {profile.machine}"
        )
        raise RefusedError(f"{profile.id}: boards of this profile get no agent package: {why}", code="no-agent")
    python = profile.os.python if python is None else python
    release = RELEASES.get(profile.machine)
    if release is not None and python != release.python:
        raise UsageError(
            f"{profile.machine} takes parts from Debian {release.suite}, whose Python is {release.python}, not {python}"
        )
    known = [engine for engine in profile.engines if engine.name in ENGINES]
    if unknown := sorted(set(engines) - {engine.name for engine in known}):
        allowed = ", ".join(engine.name for engine in known)
        raise UsageError(f"{profile.id} has no engine {unknown[0][:40]!r}; it has {allowed}")
    chosen = [engine for engine in known if (engine.name in engines if engines else not engine.optional)]
    extras = [ENGINES[engine.name][0] for engine in chosen] + ([] if release else list(NICE_TO_HAVE))
    return Needs(
        profile=profile,
        python=python,
        engines=tuple(engine.name for engine in chosen),
        requirements=(
            f"{AGENT}[{','.join(sorted(extras))}]",
            "pip>=23",
            *(f"{ENGINES[engine.name][1]}>={engine.min},<{engine.below}" for engine in chosen),
        ),
        platforms=platforms(profile.wheel_tags, profile.machine),
        release=release,
    )


def platforms(tags: Sequence[str], machine: str) -> tuple[str, ...]:
    """The profile's tags and those of older C libraries, which a newer one runs too (PEP 600)."""
    newest = max((int(tag.split("_")[2]) for tag in tags if tag.startswith("manylinux_2_")), default=0)
    oldest = 5 if machine == "x86_64" else 17
    older = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, oldest - 1, -1)]
    names = ("manylinux2014", "manylinux2010", "manylinux1") if machine == "x86_64" else ("manylinux2014",)
    legacy = [f"{name}_{machine}" for name in names] if newest >= oldest else []
    return tuple(dict.fromkeys([*tags, *older, *legacy, f"linux_{machine}"]))
