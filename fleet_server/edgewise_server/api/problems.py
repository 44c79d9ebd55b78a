"""Errors as RFC 9457 problem documents, and the one table that gives codes a status."""

from __future__ import annotations

import json
import logging
from typing import Any, Final

from edgewise_protocol.errors import ProtocolError
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from edgewise_server.errors import ServerError, TooManyRequestsError

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
_TYPE: Final = "urn:edgewise:problem:"
_MAX_DETAIL: Final = 2_000
_MAX_ERRORS: Final = 20

STATUS: Final[dict[str, int]] = {
    "server": 500,
    "settings": 500,
    "not-found": 404,
    "conflict": 409,
    "invalid": 422,
    "invalid-query": 422,
    "unauthenticated": 401,
    "forbidden": 403,
    "too-many-requests": 429,
    "too-large": 413,
    "quota": 507,
    "digest-mismatch": 422,
    "busy": 503,
    "storage-full": 507,
    "database-unavailable": 503,
    "trust": 422,
    "trust-missing": 409,
    "trust-unsigned": 422,
    "trust-expired": 422,
    "trust-version": 409,
    "trust-online-key": 422,
    "trust-delegation": 422,
    "target-mismatch": 422,
    "blob-missing": 422,
    "lineage": 422,
    "attestation": 422,
    "director": 422,
    "enrolment-refused": 403,
    "enrolment-expired": 403,
    "unknown-board": 422,
    "device-key-unknown": 403,
    "device-revoked": 403,
    "device-decommissioned": 403,
    "renewal-nonce": 409,
    "renewal-too-late": 403,
    "csr": 422,
    "certificate": 422,
}
"""Statuses of our own codes. A code of the protocol is 422: a document that breaks the contract."""

_TITLES: Final = {
    400: "Bad request",
    401: "Not authenticated",
    403: "Not permitted",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Too large",
    422: "Not acceptable as it is",
    429: "Too many requests",
    500: "Internal error",
    503: "Busy",
    507: "No room",
}
_HTTP_CODES: Final = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    instance: str = "",
    headers: dict[str, str] | None = None,
    errors: list[dict[str, str]] | None = None,
) -> Response:
    """A problem document as a response."""
    body: dict[str, Any] = {
        "type": f"{_TYPE}{code}",
        "title": _TITLES.get(status, "Error"),
        "status": status,
        "detail": detail[:_MAX_DETAIL],
        "code": code,
    }
    if instance:
        body["instance"] = instance[:500]
    if errors:
        body["errors"] = errors[:_MAX_ERRORS]
    return Response(json.dumps(body), status_code=status, media_type=MEDIA_TYPE, headers=headers)


def problem_of(error: ServerError | ProtocolError, instance: str = "") -> Response:
    """The problem document of a domain error."""
    status = STATUS.get(error.code, 500 if isinstance(error, ServerError) else 422)
    headers: dict[str, str] = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, TooManyRequestsError):
        headers["Retry-After"] = str(error.retry_after_s)
    return problem(status, error.code, str(error), instance=instance, headers=headers)


def install(app: FastAPI) -> None:
    """Answer every error of the app with a problem document."""
    app.add_exception_handler(ServerError, _domain)
    app.add_exception_handler(ProtocolError, _domain)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _domain(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServerError | ProtocolError):
        return await _unexpected(request, error)
    response = problem_of(error, request.url.path)
    if response.status_code >= 500:
        logger.warning("%s %s: %s: %s", request.method, request.url.path, error.code, error)
    return response


async def _validation(request: Request, error: Exception) -> Response:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    errors = [
        {"field": ".".join(str(part) for part in item["loc"])[:200], "message": str(item["msg"])[:200]}
        for item in found[:_MAX_ERRORS]
    ]
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in errors) or "the request is not valid"
    return problem(422, "invalid-request", detail, instance=request.url.path, errors=errors)


async def _http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = str(error.detail) if isinstance(error, HTTPException) else ""
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return problem(status, _HTTP_CODES.get(status, "http"), detail, instance=request.url.path, headers=headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(500, "internal", "the server failed; its log says why", instance=request.url.path)
