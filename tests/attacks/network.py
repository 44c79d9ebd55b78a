"""An attacker on the network: between the devices and the broker, with the broker's keys in its hands.

Honest, it hands on bytes. Hostile, it ends TLS on both sides and drops, replaces, lengthens and delays messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, Protocol

_PUBLISH: Final = 3


class Keys(Protocol):
    """What it takes to stand in the middle; see `attacker.Thief`."""

    def as_broker(self) -> ssl.SSLContext: ...
    def as_client(self, name: str) -> ssl.SSLContext: ...


class Stream:
    """Bytes that are sent as they are, instead of a message."""

    def __init__(self, chunks: Callable[[], AsyncIterator[bytes]]) -> None:
        self.chunks = chunks


class Late:
    """A message that arrives this many seconds later than it could."""

    def __init__(self, payload: bytes, seconds: float) -> None:
        self.payload = payload
        self.seconds = seconds


Answer = bytes | Stream | Late | None
"""What becomes of a message on its way to a device; None: it is dropped."""
Rewrite = Callable[[str, str, bytes], Answer]
"""(device, topic, payload) -> answer."""


class OnPath:
    """The way from the devices to the broker. Honest, it hands on bytes; else it rewrites what the broker sends.

    Args:
        port: where devices connect.
        broker_port: where the broker listens.
    """

    def __init__(self, port: int, broker_port: int) -> None:
        self.port = port
        self._broker_port = broker_port
        self._thief: Keys | None = None
        self._rewrite: Rewrite | None = None
        self._hostile_port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="on-path", daemon=True)
        self._thread.start()
        self._call(self._listen())

    def close(self) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @contextlib.contextmanager
    def hostile(self, thief: Keys, rewrite: Rewrite) -> Iterator[None]:
        """From now to the end of the block all connections run through the attacker's hands."""
        self._thief, self._rewrite = thief, rewrite
        if not self._hostile_port:
            self._call(self._listen_hostile(thief))
        self._call(self._cut())
        try:
            yield
        finally:
            self._rewrite = None
            self._call(self._cut())

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _listen(self) -> None:
        self._servers.append(await asyncio.start_server(self._honest_or_not, "127.0.0.1", self.port))

    async def _listen_hostile(self, thief: Keys) -> None:
        server = await asyncio.start_server(self._tampered, "127.0.0.1", 0, ssl=thief.as_broker())
        self._hostile_port = server.sockets[0].getsockname()[1]
        self._servers.append(server)

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        await self._cut()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)

    async def _cut(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, writers: list[asyncio.StreamWriter], *pumps: Any) -> None:
        """Pump both ways until either ends, then end both."""
        tasks = [asyncio.ensure_future(pump) for pump in pumps]
        self._tasks.update(tasks)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tasks.difference_update(tasks)
            for writer in writers:
                writer.transport.abort()

    async def _honest_or_not(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = self._broker_port if self._rewrite is None else self._hostile_port
        try:
            there, back = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.transport.abort()
            return
        now = self._broker_port if self._rewrite is None else self._hostile_port
        if port != now or not self._servers[0].is_serving():  # it was cut before it stood
            writer.transport.abort()
            back.transport.abort()
            return
        await self._run([writer, back], _bytes(reader, back), _bytes(there, writer))

    async def _tampered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """TLS ends here: towards the device the broker's certificate, towards the broker one in the device's name."""
        assert self._thief is not None
        certificate = writer.get_extra_info("peercert")
        device = next(value for ((name, value),) in certificate["subject"] if name == "commonName")
        try:
            there, back = await asyncio.open_connection(
                "127.0.0.1", self._broker_port, ssl=self._thief.as_client(device)
            )
        except OSError:
            writer.transport.abort()
            return
        await self._run(
            [writer, back], self._packets(reader, back), self._packets(there, writer, device=device, answer=back)
        )

    async def _packets(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        device: str = "",
        answer: asyncio.StreamWriter | None = None,
    ) -> None:
        """Whole MQTT packets one way; PUBLISH packets to a device go through the attacker's hands."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head, body = await _packet(reader)
                if device and head >> 4 == _PUBLISH and self._rewrite is not None and answer is not None:
                    await self._publish(head, body, device, writer, answer)
                else:
                    writer.write(_encode(head, body))
                await writer.drain()

    async def _publish(
        self, head: int, body: bytes, device: str, writer: asyncio.StreamWriter, answer: asyncio.StreamWriter
    ) -> None:
        assert self._rewrite is not None
        length = struct.unpack_from("!H", body)[0]
        topic, at = body[2 : 2 + length].decode(), 2 + length
        packet_id = body[at : at + 2] if head >> 1 & 3 else b""
        properties, after = _varint(body, at + len(packet_id))
        begin = after + properties
        made = self._rewrite(device, topic, body[begin:])
        if isinstance(made, Late):
            await asyncio.sleep(made.seconds)
            made = made.payload
        if isinstance(made, Stream):
            async for chunk in made.chunks():
                writer.write(chunk)
                await writer.drain()
        elif made is not None:
            writer.write(_encode(head, body[:begin] + made))
        elif packet_id:
            answer.write(b"\x40\x02" + packet_id)


async def _bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readexactly(1))[0]
    length, shift = 0, 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 127) << shift
        shift += 7
        if not byte & 128:
            return head, await reader.readexactly(length)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if not byte & 128:
            return value, at


def _encode(head: int, body: bytes) -> bytes:
    return bytes([head]) + remaining_length(len(body)) + body


def remaining_length(length: int) -> bytes:
    """MQTT's variable byte integer."""
    out = bytearray()
    while True:
        length, byte = length >> 7, length & 127
        out.append(byte | 128 if length else byte)
        if not length:
            return bytes(out)
