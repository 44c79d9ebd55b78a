"""A profile as a row of a table, for people to read."""

from __future__ import annotations

from typing import Final

from edgewise_profiles.schema import Profile

HEADER: Final = ("profile", "title", "processor", "memory", "forms, default first", "budget of a model")


def row(profile: Profile) -> tuple[str, ...]:
    """Cells of a profile, one for each name in `HEADER`."""
    budget, mcu = profile.budget, profile.mcu
    needs = f"{budget.memory_mib} MiB" if mcu is None else f"{mcu.stack_kib} KiB stack"
    return (
        profile.id,
        profile.title,
        f"{profile.cpu.model}, {profile.cpu.cores} x {profile.machine}",
        f"{profile.memory_mib} MiB" if mcu is None else f"{mcu.ram_kib} KiB, {mcu.flash_kib} KiB flash",
        ", ".join(f"{t.format}-{t.precision}" for t in profile.targets),
        f"{budget.model_size_kib} KiB, {budget.latency_ms:g} ms, {needs}, -{budget.accuracy_drop:g} points",
    )
