"""The fleet's metadata: whether they are there, whole, and fresh."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from edgewise_protocol.bounds import MAX_METADATA_BYTES

from edgewise_agent.doctor.check import Check, fail, ok, warn

_ROLES: Final = ("root", "timestamp", "snapshot", "targets")
_SOON: Final = timedelta(days=7)
"""Before offline keys are needed."""


@dataclass(frozen=True)
class Metadata:
    """What the files say; the doctor does not verify them: the agent does at each use."""

    expires: Mapping[str, datetime] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)


def look(folder: Path) -> Metadata:
    expires: dict[str, datetime] = {}
    versions: dict[str, int] = {}
    damaged: dict[str, str] = {}
    for role in _ROLES:
        try:
            with (folder / f"{role}.json").open("rb") as file:
                signed = json.loads(file.read(MAX_METADATA_BYTES))["signed"]
            expires[role] = datetime.fromisoformat(str(signed["expires"]))
            versions[role] = int(signed["version"])
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, KeyError) as error:
            damaged[role] = str(error)[:100]
    return Metadata(expires, versions, damaged)


def judge(metadata: Metadata, now: datetime) -> tuple[Check, ...]:
    """Pure."""
    name = "metadata"
    if metadata.damaged:
        roles = ", ".join(metadata.damaged)
        mend = "nothing: they are fetched again at the next look; if it stays so, check the disk"
        return (warn(name, f"the files of {roles} are damaged", mend, "metadata-invalid"),)
    if "timestamp" not in metadata.expires:
        return (warn(name, "none were verified yet", "see whether the broker can be reached", "metadata-unavailable"),)
    checks: list[Check] = []
    for role, when in metadata.expires.items():
        at = when.astimezone(UTC).isoformat(timespec="seconds")
        if when <= now:
            checks.append(fail(name, f"{role} expired at {at}", code=f"{role}-expired"))
        elif role in ("root", "targets") and when - now < _SOON:
            checks.append(warn(name, f"{role} expires at {at}", "tell who holds the offline keys"))
    if not checks:
        versions = ", ".join(f"{role} {version}" for role, version in metadata.versions.items())
        checks.append(ok(name, f"fresh ({versions})"))
    return tuple(checks)
