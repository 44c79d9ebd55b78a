"""Before any route: a bound on the body, and a valid token on every path that is not open.

Both are plain ASGI, so that nothing of an unauthenticated request's body is parsed.
"""

from __future__ import annotations

from typing import Any, Final

from edgewise_protocol.bounds import KIB, MAX_METADATA_BYTES, MIB
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgewise_server.api.auth import OPEN, PREFIX, Principal
from edgewise_server.api.problems import problem_of
from edgewise_server.db import Database
from edgewise_server.errors import ServerError, TooLargeError, UnauthenticatedError
from edgewise_server.services import tokens

DEFAULT_BODY_BYTES: Final = MIB
BODY_BYTES: Final[tuple[tuple[str, int], ...]] = (
    (f"{PREFIX}/metadata/", MAX_METADATA_BYTES + KIB),
    (f"{PREFIX}/trust", 2 * MAX_METADATA_BYTES),
    (f"{PREFIX}/enrol", 128 * KIB),
)
"""Bounds by the beginning of the path; the first that matches holds."""
_BLOBS: Final = f"{PREFIX}/blobs/"


def body_bound(path: str, max_blob_bytes: int) -> int:
    """Largest request body of a path, bytes."""
    if path.startswith(_BLOBS):
        return max_blob_bytes
    return next((bound for prefix, bound in BODY_BYTES if path.startswith(prefix)), DEFAULT_BODY_BYTES)


class BoundedBody:
    """Refuses bodies that exceed their path's bound, announced or not."""

    def __init__(self, app: ASGIApp, *, max_blob_bytes: int) -> None:
        self._app, self._max_blob_bytes = app, max_blob_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        bound = body_bound(scope["path"], self._max_blob_bytes)
        refusal = problem_of(TooLargeError(f"the body exceeds {bound} bytes"), scope["path"])
        announced = _header(scope, b"content-length")
        if announced.isdigit() and (len(announced) > 18 or int(announced) > bound):
            await refusal(scope, receive, send)
            return
        seen, exceeded, started = 0, False, False

        async def bounded_receive() -> Message:
            nonlocal seen, exceeded
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > bound:
                exceeded = True
                return {"type": "http.disconnect"}
            return message

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if not exceeded:
                started = True
                await send(message)

        try:
            await self._app(scope, bounded_receive, guarded_send)
        except Exception:
            # the app may stumble over the body that we cut off
            if not exceeded:
                raise
        if exceeded and not started:
            await refusal(scope, receive, send)


class Authenticated:
    """Puts the `Principal` on the request, or answers 401."""

    def __init__(self, app: ASGIApp, *, database: Database) -> None:
        self._app, self._database = app, database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) in OPEN:
            await self._app(scope, receive, send)
            return
        try:
            principal = await run_in_threadpool(self._principal, _header(scope, b"authorization").decode("latin-1"))
        except ServerError as error:
            await problem_of(error, scope["path"])(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        state["principal"] = principal
        await self._app(scope, receive, send)

    def _principal(self, header: str) -> Principal:
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise UnauthenticatedError("this needs a bearer token: Authorization: Bearer ew_...")
        with self._database.session(read_only=True) as session:
            token = tokens.find(session, secret.strip())
        if token is None:
            raise UnauthenticatedError("the token is unknown, revoked or expired")
        return Principal(token.id, token.name, token.role)


def _header(scope: Scope, name: bytes) -> bytes:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    return next((value for key, value in headers if key == name), b"")
