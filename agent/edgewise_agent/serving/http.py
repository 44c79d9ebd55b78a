"""The HTTP server: a listening socket, its connections, their deadlines and its end."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from edgewise_agent.serving.answers import Answers, MoreMetrics
from edgewise_agent.serving.connection import Connection
from edgewise_agent.serving.exchange import Limits
from edgewise_agent.serving.table import ModelTable

_SWEEP_S: Final = 1.0
_BACKLOG: Final = 128


class HttpServer:
    """Serves the Open Inference Protocol v2 (REST) and `/metrics` from a table of models.

    Args:
        table: models that may be asked.
        host: address to listen on; whoever can reach it may ask, so that loopback is the rule.
        port: 0 takes a free one, see `port`.
        limits: bounds of sizes, numbers and times.
    """

    def __init__(self, table: ModelTable, host: str, port: int, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._beside = ThreadPoolExecutor(1, "http-codec")
        self.handler = Answers(table, self.limits, self._beside)
        self._host, self._asked_port, self._port = host, port, 0
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._connections: set[Connection] = set()
        self._bodies = 0
        self._all_closed = asyncio.Event()

    @property
    def port(self) -> int:
        """The port that is listened on; 0 while not started. Any thread may ask, at any moment of an ending."""
        return self._port

    def add_metrics(self, source: MoreMetrics) -> None:
        """Let `/metrics` show what `source` gives whenever it is asked."""
        self.handler.more_metrics.append(source)

    async def start(self) -> None:
        """Listen. Raises `OSError` where the address cannot be had."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), self._host, self._asked_port, backlog=_BACKLOG
        )
        self._port = int(self._server.sockets[0].getsockname()[1])
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Accept no more, finish what was accepted for at most `grace_s`, then close."""
        if self._server is None:
            return
        self._server.close()
        self._port = 0
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._connections):
            connection.close_when_answered()
        if self._connections:
            self._all_closed.clear()
            try:
                await asyncio.wait_for(self._all_closed.wait(), grace_s)
            except TimeoutError:
                for connection in list(self._connections):
                    connection.abort()
        self._server = None
        self._beside.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------- for connections

    def opened(self, connection: Connection) -> bool:
        """Register a connection; whether there is room for it."""
        self._connections.add(connection)
        return len(self._connections) <= self.limits.connections

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        if not self._connections:
            self._all_closed.set()

    def reserve(self, size: int) -> bool:
        """Take `size` bytes of what all bodies may hold; whether there is room."""
        if self._bodies + size > self.limits.all_bodies_bytes:
            return False
        self._bodies += size
        return True

    def release(self, size: int) -> None:
        """Give bytes back."""
        self._bodies -= size

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._connections):
            connection.check_deadlines(now)
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep)
