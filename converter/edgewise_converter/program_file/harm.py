"""What an archive holds that torch must not be handed."""

from __future__ import annotations


class HarmError(Exception):
    """A part of the file runs code, reads or writes files, or never ends; the text names it."""


class DamageError(Exception):
    """The file is not such as torch writes; the text says where."""
