"""Exported torch programs (`.pt2`), opened only where nothing but tensors and torch's own operators is in them."""

from __future__ import annotations

from edgewise_converter.program_file.loading import load_program

__all__ = ["load_program"]
