"""A profile as a row of a table, for people to read."""

from __future__ import annotations

from typing import Final

from edgewise_profiles.schema import Profile

HEADER: Final = ("profile", "title", "processor", "memory", "forms, default first", "budget of a model")


def row(profile: Profile) -> tuple[str, ...]:
    """Cells of a profile, one for each name in `HEADER`."""
    budget = profile.budget
    return (
        profile.id,
        profile.title,
        f"{profile.cpu.model}, {profile.cpu.cores} x {profile.machine}",
        f"{profile.memory_mib} MiB",
        ", ".join(f"{t.format}-{t.precision}" for t in profile.targets),
        f"{budget.model_size_kib} KiB, {budget.latency_ms:g} ms, {budget.memory_mib} MiB, "
        f"-{budget.accuracy_drop:g} points",
    )
