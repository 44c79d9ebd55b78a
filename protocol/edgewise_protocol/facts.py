"""What a device says of itself, and whether a bundle fits it.

`fits` is the same pure function on the server (before it assigns) and on the device
(before it installs); the device's word is final.
"""

from __future__ import annotations

import msgspec

from edgewise_protocol.manifest import Manifest


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that the agent collects at start.

    `compatible` are the board's device-tree strings plus the configured profile id.
    `simulated` is true where `--simulated-board` stands in: architecture, CPU features
    and latency are then the host's, and are not held against the board's.
    """

    machine: str
    compatible: tuple[str, ...]
    cpu_features: tuple[str, ...] = ()
    cpu_count: int = 1
    memory_mib: int = 0
    storage_free_mib: int = 0
    engines: dict[str, str] = {}
    os: str = ""
    agent_version: str = ""
    simulated: bool = False


_MAX_DIGITS = 18


def version_tuple(text: str) -> tuple[int, ...]:
    """The leading numeric parts of a version: `1.32.0+cpu` is (1, 32, 0). Takes any text: a device says it."""
    parts: list[int] = []
    for part in text.split("+")[0].split("."):
        digits = ""
        for char in part:
            if char not in "0123456789":
                break
            digits += char
        if not digits:
            break
        parts.append(int(digits[:_MAX_DIGITS]))
    return tuple(parts[:4])


def fits(facts: DeviceFacts, manifest: Manifest) -> tuple[str, ...]:
    """Reasons why the bundle does not fit the device; empty when it fits.

    Every reason is a sentence that names what the bundle needs and what the device has.
    """
    need = manifest.requires
    reasons: list[str] = []
    if need.compatible and not set(need.compatible) & set(facts.compatible):
        reasons.append(
            f"the bundle is for {', '.join(need.compatible)}; this board is {', '.join(facts.compatible) or 'unnamed'}"
        )
    if not facts.simulated:
        if need.machine and need.machine != facts.machine:
            reasons.append(f"the bundle needs a {need.machine} processor; this one is {facts.machine}")
        missing = [f for f in need.cpu_features if f not in facts.cpu_features]
        if missing:
            reasons.append(f"the processor lacks {', '.join(missing)}")
        if need.cpu_any_of and not set(need.cpu_any_of) & set(facts.cpu_features):
            reasons.append(f"the processor has none of {', '.join(need.cpu_any_of)}")
    have = facts.engines.get(need.engine)
    if not need.engine:
        pass  # an agent bundle needs none
    elif have is None:
        reasons.append(
            f"the bundle needs the engine {need.engine}; installed: {', '.join(sorted(facts.engines)) or 'none'}"
        )
    else:
        if need.engine_min and version_tuple(have) < version_tuple(need.engine_min):
            reasons.append(f"the bundle needs {need.engine} {need.engine_min} or newer; installed: {have}")
        if need.engine_below and version_tuple(have) >= version_tuple(need.engine_below):
            reasons.append(f"the bundle needs {need.engine} below {need.engine_below}; installed: {have}")
    if need.memory_mib and facts.memory_mib and need.memory_mib > facts.memory_mib:
        reasons.append(f"the bundle needs {need.memory_mib} MiB of memory; the device has {facts.memory_mib}")
    return tuple(reasons)
