"""The passes that compile a model ahead of time, and their settings."""

from __future__ import annotations

from typing import Final

from edgewise_converter.passes.entry import PassEntry

ENTRIES: Final[tuple[PassEntry, ...]] = ()
