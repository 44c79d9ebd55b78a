"""Colours of loss: from none to all that was allowed. Pure."""

from __future__ import annotations

from typing import Final

STOPS: Final = ((0x1B, 0x9E, 0x77), (0x4F, 0x8F, 0xD6), (0xA7, 0x5B, 0xC8), (0xE0, 0x4F, 0x5F))
"""Told apart on white and on black, and by people with red-green blindness."""
REJECTED: Final = "#8a9099"


def of_loss(share: float) -> str:
    """A colour as `#rrggbb`; `share` of the allowed loss in [0, 1]."""
    at = min(max(share, 0.0), 1.0) * (len(STOPS) - 1)
    i = min(int(at), len(STOPS) - 2)
    mixed = (round(a + (b - a) * (at - i)) for a, b in zip(STOPS[i], STOPS[i + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
