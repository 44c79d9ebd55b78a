"""What a report says besides the search's own result."""

from __future__ import annotations

import msgspec
from edgewise_protocol.manifest import Proof


class LayerDamage(msgspec.Struct, frozen=True, kw_only=True):
    """One layer in the order of sensitivity of a mixed-precision search."""

    layer: str
    damage: float
    """What quantizing this layer alone costs; `Details.damage_unit` names its unit."""
    kept_float: bool
    """Whether the form that was found leaves it in float."""


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence and origin; what is empty is left out of the page."""

    bundle: str = ""
    """File name of the bundle."""
    bundle_sha256: str = ""
    model_sha256: str = ""
    """Of the winner's model file."""
    source_sha256: str = ""
    data_fingerprint: str = ""
    """Of the held-out and calibration samples."""
    profile_sha256: str = ""
    versions: dict[str, str] = {}
    """Versions of what took part, by distribution."""
    command: str = ""
    """The command line that gives this result again."""
    proofs: tuple[Proof, ...] = ()
    """Where the bundle's golden inputs were run."""
    layers: tuple[LayerDamage, ...] = ()
    """Of a mixed-precision search, in any order."""
    layers_of: str = ""
    """Name of the form that they are of; not always the winner."""
    damage_unit: str = "relative output error"
    created_at: str = ""
    """UTC, ISO 8601."""
