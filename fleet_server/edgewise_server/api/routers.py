"""All routers of the API, and the check that none of their routes is open by mistake."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fastapi import APIRouter
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from edgewise_server.api import (
    access,
    blobs,
    devices,
    federations,
    groups,
    jobs,
    models,
    monitoring,
    rollouts,
    trust,
)
from edgewise_server.api.auth import OPEN, PREFIX, Require
from edgewise_server.errors import SettingsError

ROUTERS: Final[tuple[APIRouter, ...]] = (
    access.router,
    trust.router,
    blobs.router,
    devices.router,
    groups.router,
    models.router,
    rollouts.router,
    monitoring.router,
    federations.router,
    jobs.router,
)


def api_router() -> APIRouter:
    """One router of everything below the prefix."""
    router = APIRouter(prefix=PREFIX)
    for part in ROUTERS:
        router.include_router(part)
    return router


def routes() -> Iterator[APIRoute]:
    """Every route of the API, its path without the prefix."""
    for router in ROUTERS:
        for route in router.routes:
            if isinstance(route, APIRoute):
                yield route


def demands(dependant: Dependant) -> Require | None:
    """The role that a route demands, or None."""
    for dependency in dependant.dependencies:
        if isinstance(dependency.call, Require):
            return dependency.call
        found = demands(dependency)
        if found is not None:
            return found
    return None


def check_routes() -> None:
    """Raise `SettingsError` if a route neither demands a role nor is meant to be open."""
    for route in routes():
        if demands(route.dependant) is not None:
            continue
        for method in route.methods or ():
            if (method, PREFIX + route.path) not in OPEN:
                raise SettingsError(f"the route {method} {route.path} demands no role and is not meant to be open")
