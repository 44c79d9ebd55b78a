"""Message types made ready for several threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec


def prepare_structs() -> int:
    """Have msgspec describe every `Struct` defined so far; how many it could. Call it before threads are started.

    msgspec makes a type's description when it is first decoded, and shows it to other threads before it is whole: a
    thread that decodes the same type meanwhile follows a null pointer, and the process dies [seen with 0.22.0].
    """
    described = 0
    for kind in dict.fromkeys(_defined(msgspec.Struct)):
        # What has no description, such as a record whose field types are imported for the type checker only, is
        # never decoded.
        with contextlib.suppress(NameError, TypeError):
            msgspec.json.Decoder(kind)
            described += 1
    return described


def _defined(base: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _defined(kind)
