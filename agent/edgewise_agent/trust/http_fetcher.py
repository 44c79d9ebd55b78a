"""python-tuf's fetcher over HTTP(S), for repositories that are served as files.

Every request has a bound in time as a whole, not only per read, so that a server that drips
bytes cannot hold the client (TUF specification 1.0, "slow retrieval"); the length is bounded by the caller.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.client import HTTPMessage
from typing import IO, Final

from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface

_PIECE: Final = 64 * 1024
_BROKEN: Final = (OSError, ValueError, http.client.HTTPException)
_SAFE: Final = "%/:?#[]@!$&'()*+,;=-._~"
"""Left as they are: a TUF path is already a path-relative URL; what no URL may hold is quoted."""


class HttpFetcher(FetcherInterface):
    """Args:
    silence_s: longest silence of the server, seconds.
    whole_s: longest time of one file, seconds.
    """

    def __init__(self, silence_s: float = 20.0, whole_s: float = 600.0) -> None:
        self._silence = silence_s
        self._whole = whole_s

    def _fetch(self, url: str) -> Iterator[bytes]:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise DownloadError(f"{url[:200]} is neither http nor https")
        # Only the two schemes above come here.
        request = urllib.request.Request(urllib.parse.quote(url, safe=_SAFE))  # noqa: S310
        limit = _Limit(self._whole)
        try:
            answer = limit.opener().open(request, timeout=self._silence)
        except urllib.error.HTTPError as error:
            limit.lift()
            error.close()
            raise DownloadHTTPError(f"{url[:200]}: the server answers {error.code}", error.code) from error
        except _BROKEN as error:
            limit.lift()
            self._check(url, limit, error)
            raise DownloadError(f"{url[:200]} cannot be fetched: {error}") from error
        except BaseException:
            limit.lift()
            raise
        return self._pieces(url, answer, limit)

    def _pieces(self, url: str, answer: http.client.HTTPResponse, limit: _Limit) -> Iterator[bytes]:
        try:
            with answer:
                while True:
                    try:
                        piece = answer.read1(_PIECE)
                    except _BROKEN as error:
                        self._check(url, limit, error)
                        raise DownloadError(f"{url[:200]} broke off: {error}") from error
                    # a connection that was ended looks like the end of the file
                    self._check(url, limit, None)
                    if not piece:
                        return
                    yield piece
        finally:
            limit.lift()

    def _check(self, url: str, limit: _Limit, cause: Exception | None) -> None:
        if limit.over:
            raise SlowRetrievalError(f"{url[:200]} did not end within {self._whole:g} s") from cause


class _Limit:
    """Ends the connections of one request at its deadline, whatever they are at: a status line or a header that drips
    is read by the library, which bounds each read and not all of them."""

    def __init__(self, whole_s: float) -> None:
        self._deadline = time.monotonic() + whole_s
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(whole_s, self._end)
        self._timer.daemon = True
        self._timer.start()

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._deadline

    def opener(self) -> urllib.request.OpenerDirector:
        """What opens the request, and the redirects that it leads to."""
        sockets = self._sockets

        class Plain(http.client.HTTPConnection):
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)

        class Secure(http.client.HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)

        class PlainHandler(urllib.request.HTTPHandler):
            def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(Plain, req)

        class SecureHandler(urllib.request.HTTPSHandler):
            def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(Secure, req)

        return urllib.request.build_opener(PlainHandler, SecureHandler, _HttpOnly)

    def lift(self) -> None:
        """The request is over."""
        self._timer.cancel()

    def _end(self) -> None:
        for found in self._sockets:
            with contextlib.suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """The library would follow a redirect to FTP too."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(newurl).scheme not in ("http", "https"):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)
