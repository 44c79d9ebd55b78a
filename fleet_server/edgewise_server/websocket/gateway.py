"""MQTT over WebSocket for devices that reach nothing but port 443: a gateway in front of a managed Mosquitto.

Mosquitto 2.0 has a WebSocket listener of its own, but it holds no client certificate against the revocation list and
does not read its files again on SIGHUP [seen with 2.0.11]. So the WebSocket ends here, under the same mutual TLS as at
the broker, revocation list included; what is in it goes on to the broker's only listener, under the device's own name.
Access list, takeover and eviction are the broker's, as for every other device. The gateway decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections import Counter
from typing import Final

from edgewise_server.context import Context
from edgewise_server.errors import SettingsError
from edgewise_server.serving import bind
from edgewise_server.websocket.credentials import GatewayTls, device_of
from edgewise_server.websocket.frames import Decoder, FrameError, Opcode, encode
from edgewise_server.websocket.handshake import MAX_HEAD, HandshakeError, answer, refusal

logger = logging.getLogger(__name__)

PATH: Final = "/mqtt"
MAX_CONNECTIONS: Final = 10_000
MAX_NEW: Final = 512
"""Connections that have not shown a certificate yet. Where there are more, the one that has waited longest gives way:
an honest device takes a moment, and who only holds places must not keep it out."""
MAX_PER_DEVICE: Final = 4
"""One device needs one, and another while it comes back."""
HANDSHAKE_S: Final = 15.0
"""For TLS and the opening handshake together."""
CONNECT_S: Final = 10.0
ANSWER_S: Final = 30.0
"""Until the broker's first word. A connection on which a device does not say who it is would wait here until its
certificate is revoked, and be used then."""
DRAIN_S: Final = 60.0
"""A peer that takes nothing for this long is given up."""
CLOSE_S: Final = 5.0
STOP_S: Final = 10.0
READ_BYTES: Final = 64 * 1024
_BACKLOG: Final = 1_024


class Gateway:
    """Start, stop; runs an event loop of its own in a thread."""

    def __init__(self, context: Context) -> None:
        """Raises `SettingsError` where the broker is not one whose certificates this server keeps."""
        if not context.settings.broker_managed:
            raise SettingsError("websocket_port needs a managed broker: run `edgewise-server init --broker mosquitto`")
        self._settings = context.settings
        self._tls = GatewayTls(context.settings, context.authority)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listening: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._new: dict[asyncio.Task[None], socket.socket] = {}
        self._given_up: dict[asyncio.Task[None], socket.socket] = {}
        self._open: Counter[str] = Counter()

    @property
    def connections(self) -> int:
        """How many there are now, those that have shown no certificate included."""
        return len(self._tasks)

    def start(self) -> None:
        """Listen, and return.

        Raises:
            PortError: the port cannot be listened on.
        """
        made = bind(self._settings.websocket_host, self._settings.websocket_port)
        made.listen(_BACKLOG)
        made.setblocking(False)
        self._listening = made
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="websocket", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End all connections and the thread."""
        loop, thread = self._loop, self._thread
        if loop is not None and thread is not None and thread.is_alive():
            loop.call_soon_threadsafe(self._end)
            thread.join(STOP_S)

    def _end(self) -> None:
        if self._ended is not None:
            self._ended.set()

    def _run(self) -> None:
        assert self._loop is not None  # noqa: S101 - `start` has set it
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()
            if self._listening is not None:
                self._listening.close()

    async def _serve(self) -> None:
        self._ended = asyncio.Event()
        accepting = asyncio.create_task(self._accept())
        await self._ended.wait()
        for task in (accepting, *self._tasks):
            task.cancel()
        await asyncio.gather(accepting, *self._tasks, return_exceptions=True)
        # what was aborted is closed in the loop's next turns
        for _ in range(3):
            await asyncio.sleep(0)

    async def _accept(self) -> None:
        assert self._listening is not None  # noqa: S101 - `start` has set it
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listening)
            except OSError as error:
                logger.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(0.1)
                continue
            if len(self._tasks) >= MAX_CONNECTIONS:
                logger.warning("there are %d connections already; one more is refused", MAX_CONNECTIONS)
                connection.close()
                continue
            if len(self._new) >= MAX_NEW:
                longest = next(iter(self._new))
                self._given_up[longest] = self._new.pop(longest)
                longest.cancel()
            task = asyncio.create_task(self._handle(connection))
            self._tasks.add(task)
            self._new[task] = connection
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        # one that was cancelled before it began has closed nothing
        for kept in (self._new, self._given_up):
            if (connection := kept.pop(task, None)) is not None:
                connection.close()

    async def _handle(self, connection: socket.socket) -> None:
        """One connection's life; whatever breaks it ends it, and no other."""
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(HANDSHAKE_S):
                reader, writer = await _streams(connection, self._tls.for_devices())
        except (OSError, ssl.SSLError, TimeoutError) as error:
            logger.info("a connection was refused: %s", error)
            connection.close()
            return
        if task := asyncio.current_task():
            self._new.pop(task, None)
        device_id = device_of(writer.get_extra_info("peercert"))
        try:
            if not device_id or self._open[device_id] >= MAX_PER_DEVICE:
                logger.info("a connection of %r was refused: it has %d", device_id, self._open[device_id])
                return
            self._open[device_id] += 1
            try:
                await self._carry(device_id, reader, writer)
            finally:
                self._open[device_id] -= 1
        except (OSError, ssl.SSLError, TimeoutError, FrameError, EOFError) as error:
            logger.info("a connection ended: %s", error or type(error).__name__)
        finally:
            if not self._open[device_id]:
                del self._open[device_id]
            await _close(writer)

    async def _carry(self, device_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """From the opening handshake to the end."""
        async with asyncio.timeout(HANDSHAKE_S):
            if not await _open(reader, writer):
                return
        async with asyncio.timeout(CONNECT_S):
            inner_reader, inner_writer = await asyncio.open_connection(
                self._settings.broker_host,
                self._settings.broker_port,
                ssl=self._tls.as_device(device_id),
                limit=READ_BYTES,
            )
        try:
            await _relay(reader, writer, inner_reader, inner_writer)
        finally:
            await _close(inner_writer)


async def _streams(connection: socket.socket, tls: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(READ_BYTES)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=tls)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _open(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """The opening handshake; whether it succeeded."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        if len(head) > MAX_HEAD:
            raise HandshakeError("431 Request Header Fields Too Large", f"the head has more than {MAX_HEAD} bytes")
        writer.write(answer(head, PATH))
    except asyncio.LimitOverrunError as error:
        raise FrameError("the request's head does not end") from error
    except HandshakeError as error:
        writer.write(refusal(error))
        await writer.drain()
        return False
    await writer.drain()
    return True


async def _relay(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    inner_reader: asyncio.StreamReader,
    inner_writer: asyncio.StreamWriter,
) -> None:
    """Carry bytes both ways until one side ends."""
    ways = [
        asyncio.create_task(_inward(reader, writer, inner_writer)),
        asyncio.create_task(_outward(inner_reader, writer)),
    ]
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in ways:
            task.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        with contextlib.suppress(OSError, RuntimeError):
            writer.write(encode(Opcode.CLOSE, (1000).to_bytes(2)))


async def _inward(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, inner_writer: asyncio.StreamWriter
) -> None:
    """From the device to the broker."""
    decoder = Decoder()
    while data := await reader.read(READ_BYTES):
        for piece in decoder.feed(data):
            if piece.opcode == Opcode.CLOSE:
                return
            if piece.opcode == Opcode.PING:
                writer.write(encode(Opcode.PONG, piece.payload))
                await _drain(writer)
            elif piece.opcode != Opcode.PONG:
                inner_writer.write(piece.payload)
        await _drain(inner_writer)


async def _outward(inner_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """From the broker to the device."""
    async with asyncio.timeout(ANSWER_S):
        data = await inner_reader.read(READ_BYTES)
    while data:
        writer.write(encode(Opcode.BINARY, data))
        await _drain(writer)
        data = await inner_reader.read(READ_BYTES)


async def _close(writer: asyncio.StreamWriter) -> None:
    """Say the end of TLS, and let go; at once where the task was cancelled or the peer does not answer."""
    writer.close()
    try:
        async with asyncio.timeout(CLOSE_S):
            await writer.wait_closed()
    except (OSError, ssl.SSLError, TimeoutError):
        writer.transport.abort()
    except asyncio.CancelledError:
        writer.transport.abort()
        raise


async def _drain(writer: asyncio.StreamWriter) -> None:
    async with asyncio.timeout(DRAIN_S):
        await writer.drain()
