"""HTTP content codings: gzip and deflate, bounded both ways. Pure."""

from __future__ import annotations

import zlib
from typing import Final

from edgewise_agent.serving.errors import EncodingError, RequestError, TooLargeError

_GZIP: Final = 31
_ZLIB: Final = 15
_RAW: Final = -15
_LEVEL: Final = 1
MIN_BYTES: Final = 1_024
"""Below this a coding costs more than it saves."""


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """Undo a request's `Content-Encoding`.

    `deflate` is the zlib format (RFC 9110, 8.4.1.2); bare deflate data, which some clients
    send under that name, are taken too.

    Raises:
        EncodingError: an unknown coding, or more than one.
        RequestError: the data are damaged or truncated, or followed by something else.
        TooLargeError: there would be more than `limit` bytes; no more than that is produced.
    """
    name = coding.strip().lower()
    if name in ("", "identity"):
        return body
    if name in ("gzip", "x-gzip"):
        return _inflate(body, _GZIP, limit)
    if name == "deflate":
        is_zlib = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
        return _inflate(body, _ZLIB if is_zlib else _RAW, limit)
    raise EncodingError(f"the content coding {coding[:40]!r} is not supported: use gzip, deflate or identity")


def _inflate(body: bytes, window_bits: int, limit: int) -> bytes:
    engine = zlib.decompressobj(window_bits)
    try:
        found = engine.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError(f"the body cannot be decompressed: {error}") from error
    if len(found) > limit:
        raise TooLargeError(f"the decompressed body has more than {limit} bytes")
    if not engine.eof:
        raise RequestError("the compressed body is truncated")
    if engine.unused_data:
        raise RequestError("the compressed body is followed by other data")
    return found


def choose(accepted: str) -> str | None:
    """The coding of the response for an `Accept-Encoding`, or None for identity.

    A coding must be named, with a weight above 0; gzip is preferred at equal weight.
    """
    best, best_weight = None, 0.0
    for part in accepted.lower().split(",")[:20]:
        name, _, parameter = part.partition(";")
        name = name.strip()
        weight = _weight(parameter)
        if name in ("gzip", "deflate") and (weight > best_weight or (weight == best_weight > 0 and name == "gzip")):
            best, best_weight = name, weight
    return best


def _weight(parameter: str) -> float:
    key, _, value = parameter.partition("=")
    if key.strip() != "q":
        return 1.0
    try:
        return min(1.0, max(0.0, float(value)))
    except ValueError:
        return 0.0


def compress(body: bytes, coding: str) -> bytes:
    """Apply `gzip` or `deflate`, quickly rather than tightly."""
    engine = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP if coding == "gzip" else _ZLIB)
    return engine.compress(body) + engine.flush()
