"""What the agent's process and its board use, read from /proc and /sys."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import msgspec

_KIB_PER_MIB: Final = 1024
_MAX_ZONES: Final = 32
_PLAUSIBLE_C: Final = (-60.0, 150.0)


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """One reading. Where a file is missing or unreadable its value is 0, or None."""

    rss_mib: float
    pss_mib: float
    """Resident memory, pages shared with other processes counted by their share."""
    cpu_s: float
    """Processor seconds of this process since it started."""
    load1: float
    temperature_c: float | None
    """Of the warmest thermal zone."""


def read(proc: Path = Path("/proc"), thermal: Path = Path("/sys/class/thermal")) -> Resources:
    """Read them now, of this process."""
    status = _fields(proc / "self" / "status")
    rollup = _fields(proc / "self" / "smaps_rollup")
    return Resources(
        rss_mib=status.get("VmRSS", 0) / _KIB_PER_MIB,
        pss_mib=rollup.get("Pss", 0) / _KIB_PER_MIB,
        cpu_s=time.process_time(),
        load1=_first_number(proc / "loadavg"),
        temperature_c=_temperature(thermal),
    )


def _fields(path: Path) -> dict[str, int]:
    """`Name:   123 kB` lines as numbers."""
    found: dict[str, int] = {}
    for line in _text(path).splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            found[name] = int(words[0])
    return found


def _first_number(path: Path) -> float:
    try:
        return float(_text(path).split()[0])
    except (IndexError, ValueError):
        return 0.0


def _temperature(thermal: Path) -> float | None:
    found: list[float] = []
    for zone in sorted(thermal.glob("thermal_zone*"))[:_MAX_ZONES]:
        try:
            degrees = int(_text(zone / "temp")) / 1000
        except ValueError:
            continue
        if _PLAUSIBLE_C[0] <= degrees <= _PLAUSIBLE_C[1]:
            found.append(degrees)
    return max(found, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
