"""What a latency that was measured here says of a profile's devices. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

from edgewise_profiles.schema import Profile

from edgewise_converter.hardware import Host, is_profiles_hardware

Kind = Literal["own", "architecture", "other", "host"]


class Where(NamedTuple):
    """Where something was measured."""

    kind: Kind
    text: str

    @property
    def binding(self) -> bool:
        """Whether the profile's latency budget binds here."""
        return self.kind == "own"


def where(profile: Profile | None, host: Host) -> Where:
    """Say where, and for what it counts."""
    named = f"{host.cpu or 'unnamed CPU'}, {host.machine}"
    if profile is None:
        return Where("host", f"on this host ({named}); no profile was asked for, so no budget was held against it")
    if is_profiles_hardware(profile, host):
        return Where("own", f"on {profile.id}'s own hardware ({named}): its latency budget binds")
    if host.machine == profile.machine:
        return Where(
            "architecture",
            f"on this host ({named}), of {profile.id}'s architecture but not its hardware: its latency budget does "
            "not bind",
        )
    return Where(
        "other",
        f"on this host ({named}), not of {profile.id}'s architecture ({profile.machine}): it says nothing of the "
        "latency there",
    )
