"""The server's REST interface: bounded retries, and problem documents (RFC 9457) as errors.

Only what can be asked twice without harm is retried, and only when the server cannot be
reached or says that it is busy.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx

from edgewise_cli.config import Connection
from edgewise_cli.errors import (
    CliError,
    MissingError,
    NotAuthorisedError,
    NotEdgewiseError,
    RefusedError,
    TrustError,
    UnreachableError,
    UsageError,
)

API: Final = "/api/v1"
_TRIES: Final = 4
_FIRST_PAUSE_S: Final = 0.2
_BUSY: Final = frozenset({429, 502, 503, 504})
_REPEATABLE: Final = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_MAX_ANSWER: Final = 64 * 1024 * 1024
_TRUST_CODES: Final = ("signature", "metadata", "attestation", "untrusted", "unsigned", "lineage")


def _authorities(ca_file: str) -> ssl.SSLContext | bool:
    """What a server's certificate must lead to.

    Raises:
        UsageError: the file cannot be read.
    """
    if not ca_file:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"the authorities in {ca_file} cannot be used: {error}") from error


class Client:
    """Talks to one server. Not shared between threads."""

    def __init__(
        self,
        connection: Connection,
        *,
        transport: httpx.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        headers = {"Accept": "application/json"}
        if connection.token:
            headers["Authorization"] = f"Bearer {connection.token}"
        self.server = connection.server
        self._pause = pause
        if connection.server.rstrip("/").endswith(API):
            raise UsageError(f"{connection.server!r}: give the server's URL without {API}")
        if not connection.server.startswith(("http://", "https://")):
            raise UsageError(f"{connection.server!r} is not a server's URL: it begins with http:// or https://")
        try:
            self._http = httpx.Client(
                base_url=connection.server,
                headers=headers,
                timeout=httpx.Timeout(60.0, connect=5.0),
                transport=transport,
                verify=_authorities(connection.ca_file),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise UsageError(f"{connection.server!r} is not a server's URL: {error}") from error

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        """The JSON answer of a GET; parameters that are None are left out."""
        return self._json(self._send("GET", path, params={k: v for k, v in params.items() if v is not None}))

    def post(self, path: str, body: Any = None) -> Any:
        """The JSON answer of a POST, None where there is none."""
        return self._json(self._send("POST", path, json=body if body is not None else {}))

    def put(self, path: str, body: Any = None) -> Any:
        return self._json(self._send("PUT", path, json=body if body is not None else {}))

    def delete(self, path: str) -> Any:
        return self._json(self._send("DELETE", path))

    def get_bytes(self, path: str, *, limit: int = _MAX_ANSWER, **params: Any) -> bytes:
        """The raw answer of a GET, of at most `limit` bytes."""
        return self._send("GET", path, limit=limit, params={k: v for k, v in params.items() if v is not None}).content

    def put_bytes(self, path: str, data: bytes, content_type: str = "application/json") -> Any:
        """PUT of raw bytes."""
        return self._json(self._send("PUT", path, content=data, headers={"Content-Type": content_type}))

    def has_blob(self, sha256: str) -> bool:
        """Whether the server holds a blob."""
        try:
            self._send("HEAD", f"/blobs/{sha256}")
        except MissingError:
            return False
        return True

    def put_blob(self, sha256: str, source: Path) -> None:
        """Upload a file, unless the server has it."""
        if not self.has_blob(sha256):
            self._send("PUT", f"/blobs/{sha256}", content=source.read_bytes(), headers=_OCTETS)

    def _send(self, method: str, path: str, *, limit: int = _MAX_ANSWER, **options: Any) -> httpx.Response:
        tries = _TRIES if method in _REPEATABLE else 1
        for attempt in range(tries):
            last = attempt + 1 == tries
            try:
                with self._http.stream(method, API + path, **options) as streamed:
                    answer = _bounded(streamed, limit)
            except httpx.TransportError as error:
                if not last:
                    self._pause(_FIRST_PAUSE_S * 2**attempt)
                    continue
                hint = "; does it speak http, without TLS?" if "WRONG_VERSION_NUMBER" in str(error) else ""
                raise UnreachableError(f"{self.server} cannot be reached: {error}{hint}") from error
            except (httpx.InvalidURL, httpx.DecodingError) as error:
                raise UnreachableError(f"{self.server}{path}: {error}") from error
            if answer.status_code in _BUSY and not last:
                self._pause(_FIRST_PAUSE_S * 2**attempt)
                continue
            if answer.status_code >= 400:
                if method != "HEAD" and not _is_problem(answer):
                    raise self._foreign(answer)
                raise error_of(method, path, answer)
            return answer
        raise AssertionError("unreachable: the last try returns or raises")

    def _json(self, answer: httpx.Response) -> Any:
        if answer.status_code == 204 or not answer.content:
            return None
        try:
            return answer.json()
        except ValueError as error:
            raise self._foreign(answer) from error

    def _foreign(self, answer: httpx.Response) -> NotEdgewiseError:
        """What answered is no Edgewise server, or something stands before it."""
        return NotEdgewiseError(
            f"{self.server} answers, but not as an Edgewise server does (status {answer.status_code}, "
            f"{answer.headers.get('content-type', 'no type')[:60]}): give the URL that `edgewise-server run` listens "
            "on, without a path, such as http://127.0.0.1:8470, and look whether a proxy stands between",
            details={"status": answer.status_code},
        )


def _bounded(streamed: httpx.Response, limit: int) -> httpx.Response:
    """The whole answer. It is measured after decompression, and no more of it than `limit` is held."""
    content = bytearray()
    for piece in streamed.iter_bytes():
        content += piece
        if len(content) > limit:
            raise UnreachableError(f"{streamed.request.url.path}: the server answered with more than {limit} bytes")
    kept = [(name, value) for name, value in streamed.headers.multi_items() if name not in _CODED]
    return httpx.Response(streamed.status_code, headers=kept, content=bytes(content), request=streamed.request)


_CODED: Final = ("content-encoding", "content-length", "transfer-encoding")
_HINTS: Final = {
    "unauthenticated": "give --token, set EDGEWISE_TOKEN, or run `edgewise login`",
}
"""What an operator can do about a problem, by its code."""
_NO_ROUTE: Final = "Not Found"
"""Detail of the problem where the API has no such path: the server's URL has one too many."""
_OCTETS: Final = {"Content-Type": "application/octet-stream"}


def segment(text: str) -> str:
    """A path segment, quoted."""
    return quote(text, safe="")


def _is_problem(answer: httpx.Response) -> bool:
    """Whether an answer is a problem document of ours, about something that our API has."""
    try:
        problem = answer.json()
    except ValueError:
        return False
    if not isinstance(problem, dict) or problem.get("detail") == _NO_ROUTE:
        return False
    return "code" in problem or "detail" in problem


def error_of(method: str, path: str, answer: httpx.Response) -> CliError:
    """The error of an answer with status 400 or more."""
    code, message = "", ""
    try:
        problem = answer.json()
        code = str(problem.get("code", ""))
        message = _message(problem)
    except (ValueError, AttributeError):
        message = answer.text[:300]
    message = message or f"{method} {path} was answered with status {answer.status_code}"
    if code in _HINTS:
        message = f"{message}; {_HINTS[code]}"
    details = {"status": answer.status_code}
    kind: type[CliError] = RefusedError
    if answer.status_code in (401, 403):
        kind = NotAuthorisedError
    elif answer.status_code == 404:
        kind = MissingError
    elif answer.status_code >= 500 or answer.status_code == 429:
        kind = UnreachableError
    elif any(word in code for word in _TRUST_CODES):
        kind = TrustError
    return kind(message, code=code or kind.code, details=details)


def _message(problem: dict[str, Any]) -> str:
    detail = problem.get("detail") or problem.get("title") or ""
    return detail if isinstance(detail, str) else json.dumps(detail)[:500]
