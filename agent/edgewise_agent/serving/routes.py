"""Paths of the Open Inference Protocol v2 (REST), and what they ask for. Pure."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple
from urllib.parse import unquote

Kind = Literal["server", "live", "ready", "metrics", "model", "model-ready", "infer"]

METHODS: Final[dict[Kind, tuple[str, ...]]] = {
    "server": ("GET", "HEAD"),
    "live": ("GET", "HEAD"),
    "ready": ("GET", "HEAD"),
    "metrics": ("GET", "HEAD"),
    "model": ("GET", "HEAD"),
    "model-ready": ("GET", "HEAD"),
    "infer": ("POST",),
}
_FIXED: Final[dict[str, Kind]] = {
    "/v2": "server",
    "/v2/health/live": "live",
    "/v2/health/ready": "ready",
    "/metrics": "metrics",
}
_BELOW_MODEL: Final[dict[tuple[str, ...], Kind]] = {(): "model", ("ready",): "model-ready", ("infer",): "infer"}


class Route(NamedTuple):
    """What a path asks for; `version` None is the active one."""

    kind: Kind
    model: str = ""
    version: int | None = None


def parse(target: str) -> Route | None:
    """The route of a request target, its query left out; None where there is nothing."""
    path = target.partition("?")[0]
    if len(path) > 1:
        path = path.removesuffix("/")
    if path in _FIXED:
        return Route(_FIXED[path])
    match path.split("/"):
        case ["", "v2", "models", model, "versions", version, *rest] if version.isascii() and version.isdigit():
            number: int | None = int(version[:12])
        case ["", "v2", "models", model, *rest]:
            number = None
        case _:
            return None
    kind = _BELOW_MODEL.get(tuple(rest))
    return Route(kind, unquote(model), number) if kind and model else None
