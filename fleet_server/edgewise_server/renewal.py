"""The repository signer's clock: signs snapshot, timestamp and CRL again before they expire."""

from __future__ import annotations

import logging
import threading
from typing import Final

from edgewise_server import rotation
from edgewise_server.context import Context
from edgewise_server.models.base import utc_now

logger = logging.getLogger(__name__)
STOP_S: Final = 10.0


class Renewal:
    """A thread that looks every `renewal_check_s` seconds. Several servers may run it: one lock decides."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception:  # one failed look must not be the last: the metadata would expire
                logger.exception("renewing signatures failed; the next look is in %s s", self._wait_s)
            if self._stop.wait(self._wait_s):
                return

    @property
    def _wait_s(self) -> float:
        return self._context.settings.renewal_check_s

    def look(self) -> None:
        """Renew what is due."""
        if self._context.repository.renew(utc_now()):
            logger.info("snapshot and timestamp were signed again")
        rotation.settle(self._context)
        if self._context.refresh_crl():
            logger.info("the revocation list was signed again")
        for what in self._context.refresh_broker(thorough=True):
            logger.info("the broker got %s", what)
