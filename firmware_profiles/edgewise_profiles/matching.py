"""Which profile is a device's own: from the facts that it reports, pure.

A board that names itself (by the profile's id, or by a device-tree string) is taken at its
word as far as its processor bears it out; a machine without a device tree falls to the
profile without one that asks the most of the processor and is satisfied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgewise_profiles import catalogue
from edgewise_profiles.errors import NoMatchError
from edgewise_profiles.schema import Profile


class Facts(Protocol):
    """What matching looks at; `edgewise_protocol.facts.DeviceFacts` has it."""

    @property
    def machine(self) -> str: ...
    @property
    def compatible(self) -> tuple[str, ...]: ...
    @property
    def cpu_features(self) -> tuple[str, ...]: ...
    @property
    def memory_mib(self) -> int: ...
    @property
    def simulated(self) -> bool: ...


def match(facts: Facts, profiles: Sequence[Profile] | None = None) -> Profile:
    """The best profile for a device.

    Args:
        facts: what the device says of itself; `compatible` has its most specific string first.
            A simulated board's processor is not held against the profile.
        profiles: where to look; the catalogue by default.

    Raises:
        NoMatchError: none fits; the message says why for each.
    """
    known = catalogue.load_all() if profiles is None else tuple(profiles)
    found = [p for p in known if not misfits(p, facts)]
    if not found:
        whys = "; ".join(f"{p.id}: {', '.join(misfits(p, facts))}" for p in known)
        raise NoMatchError(f"no profile fits this device. {whys}")
    return min(found, key=lambda p: (_kinship(p, facts), -len(p.cpu.features) - len(p.cpu.any_of), p.id))


def misfits(profile: Profile, facts: Facts) -> tuple[str, ...]:
    """Why a profile is not this device's; empty when it may be."""
    reasons: list[str] = []
    named = bool(set(profile.all_compatible) & set(facts.compatible))
    if not named and (profile.compatible or facts.simulated):
        reasons.append(f"the device is not {' or '.join(profile.all_compatible)}")
    if not facts.simulated:
        reasons += hardware_misfits(profile, facts.machine, facts.cpu_features)
    if facts.memory_mib and facts.memory_mib < profile.budget.memory_mib:
        reasons.append(f"{profile.budget.memory_mib} MiB of memory are needed, {facts.memory_mib} are there")
    return tuple(reasons)


def hardware_misfits(profile: Profile, machine: str, features: Sequence[str]) -> tuple[str, ...]:
    """Why a processor is not the profile's; empty when it may be."""
    reasons: list[str] = []
    if machine != profile.machine:
        reasons.append(f"the processor is {machine}, not {profile.machine}")
    missing = [f for f in profile.cpu.features if f not in features]
    if missing:
        reasons.append(f"the processor lacks {', '.join(missing)}")
    if profile.cpu.any_of and not set(profile.cpu.any_of) & set(features):
        reasons.append(f"the processor has none of {', '.join(profile.cpu.any_of)}")
    return tuple(reasons)


def _kinship(profile: Profile, facts: Facts) -> int:
    """0 for the id itself, then the place of the device-tree string, most specific first."""
    if profile.id in facts.compatible:
        return 0
    places = [i for i, name in enumerate(facts.compatible) if name in profile.compatible]
    return 1 + (places[0] if places else len(facts.compatible))
