"""The machine that the converter runs on, and whether it is a profile's own hardware."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

import msgspec
from edgewise_profiles.matching import hardware_misfits
from edgewise_profiles.schema import Profile

_CPUINFO: Final = Path("/proc/cpuinfo")
_DEVICE_TREE: Final = Path("/proc/device-tree/compatible")
_MAX_BYTES: Final = 4 << 20


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A machine, as Linux describes it."""

    machine: str
    cpu: str = ""
    cpu_features: tuple[str, ...] = ()
    compatible: tuple[str, ...] = ()
    """Device-tree strings; none on a PC."""


def read_host() -> Host:
    """Describe this machine; what Linux does not tell stays empty."""
    fields: dict[str, str] = {}
    for line in _read(_CPUINFO).decode("utf-8", "replace").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return Host(
        machine=platform.machine(),
        cpu=fields.get("model name", fields.get("Model", "")),
        cpu_features=tuple((fields.get("flags") or fields.get("Features") or "").split()),
        compatible=tuple(s for s in _read(_DEVICE_TREE).decode("ascii", "replace").split("\0") if s),
    )


def is_instruction_set(profile: Profile, host: Host) -> bool:
    """Whether what runs on `host` runs on the profile's instruction set, with every feature that it names."""
    return not hardware_misfits(profile, host.machine, host.cpu_features)


def is_profiles_hardware(profile: Profile, host: Host) -> bool:
    """Whether a latency measured on `host` says something of the profile's devices.

    The machine and every processor feature must be the profile's; a board must also name itself.
    """
    if hardware_misfits(profile, host.machine, host.cpu_features):
        return False
    return not profile.compatible or bool(set(profile.compatible) & set(host.compatible))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as source:
            return source.read(_MAX_BYTES)
    except OSError:
        return b""
