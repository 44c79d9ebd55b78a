"""python-tuf's fetcher over retained MQTT messages: `mqtt:/timestamp.json` is `ew/1/meta/timestamp.json`.

It knows nothing of trust; the updater verifies what it brings. An absent file is a 404.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from edgewise_protocol import topics
from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient import FetcherInterface

from edgewise_agent.errors import SessionError
from edgewise_agent.session.retained import RetainedReader

BASE_URL: Final = "mqtt:/"


class RetainedFetcher(FetcherInterface):
    """Fetches metadata files; artifacts travel as chunks, see `edgewise_agent.download`.

    Args:
        reader: reads retained topics.
        want: asks the server to publish a metadata file that the broker does not have.
        wait_s: how long its publication is awaited, seconds.
    """

    def __init__(self, reader: RetainedReader, want: Callable[[str], None], wait_s: float) -> None:
        self._reader = reader
        self._want = want
        self._wait_s = wait_s

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(BASE_URL)
        topic = topics.metadata(name)
        # The next root is normally absent: that is how a client learns that it has the newest.
        next_root = name.endswith(".root.json")
        try:
            found = self._reader.read(
                [topic], ask=None if next_root else lambda _absent: self._want(name), wait_s=self._wait_s
            )
        except SessionError as error:
            raise DownloadError(str(error)) from error
        if topic not in found:
            raise DownloadHTTPError(f"the broker has no {name}", 404)
        return iter([found[topic]])
