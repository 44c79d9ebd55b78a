"""The composition root: the API, and the roles that run beside it in one process or apart."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

from edgewise_protocol.structs import prepare_structs
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from edgewise_server.api import problems
from edgewise_server.api.access import VERSION
from edgewise_server.api.auth import PREFIX
from edgewise_server.api.middleware import Authenticated, BoundedBody
from edgewise_server.api.rates import RateBound
from edgewise_server.api.routers import api_router, check_routes
from edgewise_server.bridge.service import Bridge
from edgewise_server.broker.embedded import EmbeddedBroker
from edgewise_server.context import Context
from edgewise_server.orchestrator.service import Orchestrator
from edgewise_server.renewal import Renewal
from edgewise_server.settings import ServerRole
from edgewise_server.websocket.gateway import Gateway

logger = logging.getLogger(__name__)

PARTS: Final[dict[ServerRole, tuple[str, ...]]] = {
    "all": ("api", "signer", "broker", "bridge", "orchestrator"),
    "api": ("api", "signer"),
    "bridge": ("broker", "bridge"),
    "orchestrator": ("orchestrator",),
}
"""What a process of each role runs. Without `embedded_broker`, no broker."""


class Part(Protocol):
    """Something that runs beside the API."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


def parts_of(context: Context, role: ServerRole) -> list[Part]:
    """What runs beside the API in a process of this role, in the order of starting."""
    names = PARTS[role]
    parts: list[Part] = []
    if "broker" in names and context.settings.embedded_broker:
        parts.append(EmbeddedBroker(context.settings))
    if "broker" in names and context.settings.websocket_port:
        parts.append(Gateway(context))
    if "signer" in names:
        parts.append(Renewal(context))
    if "bridge" in names:
        parts.append(Bridge(context))
    if "orchestrator" in names:
        parts.append(Orchestrator(context))
    return parts


def start_all(parts: Iterable[Part]) -> list[Part]:
    """Start parts in order; if one fails, stop those that run, and raise."""
    prepare_structs()
    running: list[Part] = []
    try:
        for part in parts:
            part.start()
            running.append(part)
    except BaseException:
        stop_all(running)
        raise
    return running


def stop_all(running: Sequence[Part]) -> None:
    """Stop parts, the newest first; one that fails does not keep the others running."""
    for part in reversed(running):
        try:
            part.stop()
        except Exception:
            logger.exception("%s did not stop cleanly", type(part).__name__)


def create_app(context: Context, *, role: ServerRole = "api", parts: Sequence[Part] = ()) -> FastAPI:
    """The API over a context; `parts` run while it serves.

    Raises:
        SettingsError: a route demands no role.
    """
    check_routes()
    prepare_structs()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = await run_in_threadpool(start_all, parts)
        try:
            yield
        finally:
            await run_in_threadpool(stop_all, running)

    app = FastAPI(
        title="Edgewise fleet server",
        version=VERSION,
        description="Registry, trust, devices, rollouts, monitoring and federation of a fleet.",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.edgewise = context
    app.state.roles = PARTS[role]
    app.state.enrol_rate = RateBound(context.settings.enrol_per_minute)
    app.state.renew_rate = RateBound(context.settings.renew_per_minute)
    app.include_router(api_router())
    problems.install(app)
    # the last one added is the outermost: nothing of a body is read before the token is known
    app.add_middleware(BoundedBody, max_blob_bytes=context.settings.max_blob_bytes)
    app.add_middleware(Authenticated, database=context.database)
    return app
