"""Strict reading of untyped tables into typed sections, with messages that name the key.

`msgspec` checks the types; this module adds what its messages leave out: which keys a
section allows, and which one was probably meant.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from edgewise_trainer.errors import ConfigError

Section = TypeVar("Section", bound=msgspec.Struct)


def read_section(table: object, section: type[Section], where: str) -> Section:
    """Convert a table into `section`.

    Args:
        table: what the TOML parser gave.
        section: a msgspec struct; its fields are the allowed keys.
        where: how messages call the table, e.g. `[train]`.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, or a value out of its range.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table, not {type(table).__name__}")
    check_keys(table, section, where)
    try:
        return msgspec.convert(dict(table), section)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_plain(str(error))}") from error


def check_keys(table: Mapping[str, Any], section: type[msgspec.Struct], where: str) -> None:
    """Raise `ConfigError` for the first key of `table` that `section` does not have."""
    allowed = [field.encode_name for field in msgspec.structs.fields(section)]
    for key in table:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ConfigError(f"{where} has no key {str(key)[:80]!r}{hint} Allowed: {', '.join(sorted(allowed))}")


def _plain(message: str) -> str:
    """`Expected `int`, got `str` - at `$.epochs`` -> `epochs: expected `int`, got `str``."""
    text, _, path = message.partition(" - at `$")
    key = path.rstrip("`").lstrip(".")
    return f"{key}: {text[0].lower()}{text[1:]}" if key else text
