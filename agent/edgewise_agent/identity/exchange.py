"""One question to the fleet's server over HTTPS, and its answer or the code by which it refuses."""

from __future__ import annotations

import http.client
import logging
import ssl
import urllib.error
import urllib.request
from typing import Any, Final, TypeVar

import msgspec

from edgewise_agent.errors import ServerRefusedError, ServerUnreachableError

log = logging.getLogger(__name__)

_MAX_ANSWER: Final = 2 << 20
_TIMEOUT_S: Final = 30.0
_MAX_RETRY_AFTER_S: Final = 3600.0

T = TypeVar("T")


def ask(server_url: str, path: str, fleet_ca: str, question: msgspec.Struct, answer: type[T]) -> T:
    """POST a question; redirects are not followed.

    Args:
        server_url: base URL of the server.
        fleet_ca: PEM of the only authority that the server's certificate may lead to.

    Raises:
        ServerRefusedError: the server answers that it will not; `code` in its `problem` says why.
        ServerUnreachableError: there is no answer, or not one of this kind.
    """
    url = server_url.rstrip("/") + path
    if not url.startswith("https://"):
        log.warning("the server is asked without TLS: use it on a network that you trust", extra={"url": url})
    try:
        context = ssl.create_default_context(cadata=fleet_ca)
        asked = urllib.request.Request(  # noqa: S310 - the enrolment file's pattern admits http and https only
            url,
            data=msgspec.json.encode(question),
            headers={"Content-Type": "application/json", "Accept": "application/json"},
            method="POST",
        )
        handlers: list[Any] = [urllib.request.HTTPSHandler(context=context), _NoRedirect()]
        opener = urllib.request.build_opener(*handlers)
        with opener.open(asked, timeout=_TIMEOUT_S) as response:
            return msgspec.json.decode(response.read(_MAX_ANSWER), type=answer)
    except urllib.error.HTTPError as error:
        raise _refusal(error) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        # msgspec's errors are ValueErrors too
        if isinstance(error, msgspec.MsgspecError):
            raise ServerUnreachableError(f"the server's answer is not one to this question: {error}") from error
        raise ServerUnreachableError(f"the server at {server_url} cannot be asked: {error}") from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Secrets go to the server that the enrolment file names, and to no other."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


def _refusal(error: urllib.error.HTTPError) -> ServerRefusedError:
    """What a problem document (RFC 9457) says, or the reason phrase."""
    try:
        found = msgspec.json.decode(error.read(_MAX_ANSWER), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError, http.client.HTTPException):
        found = {}
    try:
        wait = min(_MAX_RETRY_AFTER_S, max(0.0, float(error.headers.get("Retry-After", "0"))))
    except ValueError:
        wait = 0.0
    detail = str(found.get("detail") or found.get("title") or error.reason)[:500]
    return ServerRefusedError(detail, error.code, str(found.get("code", ""))[:64], wait)
