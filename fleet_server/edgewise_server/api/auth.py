"""Who asks, and whether they may: `require(role)`.

The authentication middleware (`edgewise_server.api.middleware`) has already put the
`Principal` of a valid token on the request, or answered 401: no path below the API prefix
is reachable without a token unless `OPEN` names it. `require` checks its role.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from fastapi import Depends, Request

from edgewise_server.errors import ForbiddenError, UnauthenticatedError

Role = Literal["admin", "operator", "viewer", "worker"]
ROLES: Final[tuple[Role, ...]] = ("admin", "operator", "viewer", "worker")
_RANK: Final[dict[str, int]] = {"viewer": 1, "operator": 2, "admin": 3}
"""`worker` is beside the ladder: it gets what names it, and nothing else."""

PREFIX: Final = "/api/v1"
OPEN: Final[frozenset[tuple[str, str]]] = frozenset(
    {
        ("GET", f"{PREFIX}/health"),
        ("POST", f"{PREFIX}/enrol"),
        ("POST", f"{PREFIX}/renew"),
        ("POST", f"{PREFIX}/renew/nonce"),
        ("GET", f"{PREFIX}/openapi.json"),
    }
)
"""Reachable without a bearer token. `POST /enrol` authenticates by the one-time token in its body, `POST /renew` by a
signature of the device's registered key."""


@dataclass(frozen=True)
class Principal:
    """The holder of a valid token."""

    token_id: str
    name: str
    role: str
    """One of `ROLES`."""


def permits(role: str, allowed: tuple[str, ...]) -> bool:
    """Whether `role` is one of `allowed`, stands above one of them, or is admin."""
    if role == "admin" or role in allowed:
        return True
    rank = _RANK.get(role, 0)
    return any(rank >= _RANK[a] for a in allowed if a in _RANK) if rank else False


class Require:
    """A FastAPI dependency that demands one of some roles and returns the `Principal`."""

    def __init__(self, *allowed: Role) -> None:
        self.allowed = allowed

    async def __call__(self, request: Request) -> Principal:
        principal: Principal | None = getattr(request.state, "principal", None)
        if principal is None:
            raise UnauthenticatedError("this needs a bearer token: Authorization: Bearer ew_...")
        if not permits(principal.role, self.allowed):
            raise ForbiddenError(f"this needs the role {' or '.join(self.allowed)}; the token has {principal.role}")
        return principal


def require(*allowed: Role) -> Callable[..., object]:
    """`Depends(require("operator"))`: at least operator. `require("viewer", "worker")`: either."""
    return Require(*allowed)


Admin = Annotated[Principal, Depends(require("admin"))]
Operator = Annotated[Principal, Depends(require("operator"))]
Viewer = Annotated[Principal, Depends(require("viewer"))]
Worker = Annotated[Principal, Depends(require("worker"))]
ViewerOrWorker = Annotated[Principal, Depends(require("viewer", "worker"))]
OperatorOrWorker = Annotated[Principal, Depends(require("operator", "worker"))]
