"""Whether a bundle is the one that its signed target speaks of. Pure."""

from __future__ import annotations

from edgewise_protocol.manifest import Manifest
from edgewise_protocol.targets import TargetCustom, custom_for

from edgewise_agent.errors import BundleMismatchError


def check_matches(manifest: Manifest, custom: TargetCustom) -> None:
    """Raise `BundleMismatchError` naming the first thing that differs."""
    inside = custom_for(manifest, custom.chunk_index)
    for field in ("kind", "model", "version", "profile", "engine", "compatible"):
        got, signed = getattr(inside, field), getattr(custom, field)
        if got != signed:
            raise BundleMismatchError(f"the bundle's {field} is {got!r}; signed was {signed!r}")
