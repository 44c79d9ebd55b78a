"""One HTTP/1.1 connection: framing, bounds, order, time-outs. What is asked is for others to answer.

Requests of a connection are answered one after the other, in their order. What breaks a
bound is answered with a reason, then the connection is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final, Literal, Protocol, cast

import httptools

from edgewise_agent.serving.exchange import Handler, Limits, Request, Response, error_response, render

log = logging.getLogger(__name__)
_NEVER: Final = float("inf")
_UPGRADE_FIELDS: Final = frozenset({"upgrade", "connection", "http2-settings"})
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class House(Protocol):
    """What a connection needs of its server."""

    @property
    def limits(self) -> Limits:
        """Its bounds."""

    @property
    def handler(self) -> Handler:
        """What answers requests."""

    def opened(self, connection: Connection) -> bool:
        """Register; whether there is room for it."""

    def closed(self, connection: Connection) -> None:
        """Forget it."""

    def reserve(self, size: int) -> bool:
        """Take `size` bytes of what all bodies may hold; whether there is room."""

    def release(self, size: int) -> None:
        """Give them back."""


class Connection(asyncio.Protocol):
    """An asyncio protocol around one parser. All of it runs on the event loop."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._limits = house.limits
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Request | Response] = deque()
        self._task: asyncio.Task[None] | None = None
        self._state: Literal["between", "head", "body", "deaf"] = "between"
        self._read_deadline = _NEVER
        self._write_deadline = _NEVER
        self._reserved = 0
        self._may_write = True
        self._closing = False
        self._paused = False
        self._completed = 0
        self._target = b""
        self._headers: dict[str, str] = {}
        self._header_count = 0
        self._head_size = 0
        self._head_fed = 0
        self._body: list[bytes] = []
        self._body_size = 0

    # ------------------------------------------------------------- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._read_deadline = self._loop.time() + self._limits.receive_s
        if not self._house.opened(self):
            self._refuse(503, f"this server has {self._limits.connections} connections already")

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = "deaf"
        self._transport = None
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
        self._house.release(self._reserved)
        self._reserved = 0
        self._house.closed(self)

    def data_received(self, data: bytes) -> None:
        if self._state == "deaf":
            return
        before, body = self._completed, self._body_size
        self._feed(data)
        if self._state in ("head", "body") and self._completed == before and self._body_size == body:
            # The parser keeps an unfinished header or trailer to itself, however long it grows.
            self._head_fed += len(data)
            if self._head_fed > self._limits.head_bytes:
                self._refuse(431, f"the request's head has more than {self._limits.head_bytes} bytes")
        self._pump()

    def eof_received(self) -> bool:
        """Keep the sending half open while answers are due."""
        self._state = "deaf"
        self._closing = True
        return self._busy

    def pause_writing(self) -> None:
        self._may_write = False
        self._write_deadline = self._loop.time() + self._limits.send_s

    def resume_writing(self) -> None:
        self._may_write = True
        self._write_deadline = _NEVER
        self._pump()

    # ------------------------------------------------------------- httptools' side

    def on_message_begin(self) -> None:
        self._target, self._headers, self._body = b"", {}, []
        self._header_count = self._head_size = self._head_fed = self._body_size = 0
        if self._state != "deaf":
            self._state = "head"
            self._read_deadline = self._loop.time() + self._limits.receive_s

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._head_size += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._state == "body":
            return  # a trailer: nothing here asks for one, and it must not pass for a header
        self._head_size += len(name) + len(value) + 4
        self._header_count += 1
        if self._header_count <= self._limits.headers:
            key = name.decode("latin-1").lower()
            text = value.decode("latin-1").strip()
            self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        if self._state == "deaf":
            return
        limits = self._limits
        self._state = "body"
        self._head_fed = 0
        self._read_deadline = self._loop.time() + limits.receive_s
        if self._head_size > limits.head_bytes or self._header_count > limits.headers:
            self._refuse(431, f"the request's head has more than {limits.head_bytes} bytes or {limits.headers} headers")
            return
        length = self._headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > limits.body_bytes:
            self._refuse(413, f"the body has {length[:20]} bytes; at most {limits.body_bytes} are taken")
        elif self._headers.get("expect", "").lower() == "100-continue" and not self._busy and self._transport:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        if self._state == "deaf":
            return
        self._body_size += len(body)
        self._head_fed = 0
        self._read_deadline += len(body) / self._limits.slowest_bytes_s
        if self._body_size > self._limits.body_bytes:
            self._refuse(413, f"the body has more than {self._limits.body_bytes} bytes")
        elif not self._house.reserve(len(body)):
            self._refuse(503, "this server holds as many request bodies as it can; try again")
        else:
            self._reserved += len(body)
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._state == "deaf":
            return
        self._state = "between"
        self._completed += 1
        self._read_deadline = _NEVER
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        target = self._target.decode("latin-1")
        method = self._parser.get_method().decode("ascii")
        keep = bool(self._parser.should_keep_alive()) and self._parser.get_http_version() != "1.0"
        self._body = []
        self._waiting.append(Request(method, target, self._headers, body, keep))
        if not keep:
            self._state = "deaf"
        if len(self._waiting) >= self._limits.pipelined and self._transport is not None:
            self._transport.pause_reading()
            self._paused = True

    # ------------------------------------------------------------- the server's side

    def check_deadlines(self, now: float) -> None:
        """Called now and then: give up on a client that is too slow."""
        if self._transport is None:
            return
        if now > self._write_deadline:
            self._transport.abort()
        elif now > self._read_deadline and not self._paused:
            if self._closing:
                self._transport.abort()
            elif self._state in ("between", "deaf"):
                self._transport.close()
            else:
                self._refuse(408, f"the request did not arrive in {self._limits.receive_s:g} s")
                self._pump()

    def close_when_answered(self) -> None:
        """Take no further request; close as soon as those taken are answered."""
        self._state = "deaf"
        self._closing = True
        if not self._busy and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------- inside

    @property
    def _busy(self) -> bool:
        return self._task is not None or bool(self._waiting)

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(400, f"this is not an HTTP/1.1 request: {error}")

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Take the request as if it had not asked to upgrade (RFC 9110, 7.8).

        The parser takes what follows such a head for another protocol, and would lose the
        body: the head is given to a new one without the fields that asked.
        """
        asked = self._waiting.pop() if self._waiting else None
        if not isinstance(asked, Request) or asked.method == "CONNECT":
            self._refuse(400, "this server is no proxy")
            return
        kept = [f"{name}: {value}" for name, value in asked.headers.items() if name not in _UPGRADE_FIELDS]
        head = "\r\n".join([f"{asked.method} {asked.target} HTTP/1.1", *kept, "", ""])
        self._state = "between"
        self._parser = httptools.HttpRequestParser(self)
        self._feed(head.encode("latin-1") + rest)

    def _refuse(self, status: int, text: str) -> None:
        if self._state == "deaf":
            return
        self._state = "deaf"
        self._read_deadline = _NEVER
        self._body = []
        self._waiting.append(error_response(status, text, close=True))
        self._pump()

    def _pump(self) -> None:
        if self._task is None and self._waiting and self._may_write and self._transport is not None:
            item = self._waiting.popleft()
            if isinstance(item, Response):
                self._write(item, close=True, head_only=False)
                return
            self._task = self._loop.create_task(self._answer(item))

    async def _answer(self, request: Request) -> None:
        limits = self._limits
        try:
            response = await asyncio.wait_for(self._house.handler(request), limits.answer_s)
        except TimeoutError:
            response = error_response(503, f"there was no answer within {limits.answer_s:g} s; try again", close=True)
        except Exception:
            log.exception("unforeseen error while answering %s %s", request.method, request.target[:200])
            response = error_response(500, "internal error", close=True)
        self._task = None
        if self._transport is None:
            return
        size = len(request.body)
        self._house.release(size)
        self._reserved -= size
        last = not request.keep_alive or response.close or (self._closing and not self._waiting)
        self._write(response, close=last, head_only=request.method == "HEAD")
        if self._paused and len(self._waiting) < limits.pipelined and not last:
            self._paused = False
            self._read_deadline += limits.receive_s
            self._transport.resume_reading()
        self._pump()

    def _write(self, response: Response, *, close: bool, head_only: bool) -> None:
        if self._transport is None:
            return
        self._transport.write(render(response, close=close, head_only=head_only))
        if not close:
            if self._state == "between" and not self._waiting:
                self._read_deadline = self._loop.time() + self._limits.idle_s
            return
        # Closing with unread input resets the connection, and the client may never see the
        # reason: say that nothing more comes, and let it finish for a moment.
        refused = self._state == "deaf" and response.close
        self._state = "deaf"
        self._closing = True
        self._waiting.clear()
        if refused and self._transport.can_write_eof() and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
            self._transport.write_eof()
            self._read_deadline = self._loop.time() + self._limits.linger_s
        else:
            self._transport.close()
