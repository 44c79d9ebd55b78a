"""python-tuf's fetcher over HTTP(S), for repositories that are served as files.

Every request has a bound in time as a whole, not only per read, so that a server that drips
bytes cannot hold the client (TUF specification 1.0, "slow retrieval"); the length is bounded by the caller.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Final

from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface

_PIECE: Final = 64 * 1024
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
        try:
            answer = urllib.request.urlopen(request, timeout=self._silence)  # noqa: S310
        except urllib.error.HTTPError as error:
            error.close()
            raise DownloadHTTPError(f"{url[:200]}: the server answers {error.code}", error.code) from error
        except (OSError, ValueError) as error:
            raise DownloadError(f"{url[:200]} cannot be fetched: {error}") from error
        return self._pieces(url, answer, time.monotonic() + self._whole)

    def _pieces(self, url: str, answer: urllib.request._UrlopenRet, deadline: float) -> Iterator[bytes]:
        with answer:
            while True:
                try:
                    piece = answer.read1(_PIECE)
                except (OSError, ValueError) as error:
                    raise DownloadError(f"{url[:200]} broke off: {error}") from error
                if not piece:
                    return
                if time.monotonic() > deadline:
                    raise SlowRetrievalError(f"{url[:200]} did not end within {self._whole:g} s")
                yield piece
