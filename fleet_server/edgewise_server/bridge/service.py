"""The bridge's two threads: one takes in what devices send, one publishes what the broker is to retain.

Packets are acknowledged to the broker after the commit that stores them, in the order in which they came. Both
threads live under one lease and one connection: whatever goes wrong, both are ended and made anew.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from typing import Final

from edgewise_protocol import topics
from edgewise_protocol.bounds import MIB
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.messages import Ack, encode
from sqlalchemy.exc import DataError, IntegrityError

from edgewise_server.bridge import publishing
from edgewise_server.bridge.acks import AckBox
from edgewise_server.bridge.client import Packet
from edgewise_server.bridge.connection import Connection
from edgewise_server.bridge.errors import BridgeError
from edgewise_server.bridge.intake import Answers, take_in
from edgewise_server.bridge.pacing import Pacer
from edgewise_server.bridge.sorting import SUBSCRIPTIONS, Item, sort
from edgewise_server.context import Context
from edgewise_server.errors import ServerError
from edgewise_server.services import leases, outgoing, updates
from edgewise_server.services.ingest import REFUSED, StreamedItem
from edgewise_server.services.updates import ChunkItem
from edgewise_server.uploads.store import UploadStore

LEASE: Final = "bridge"
UPLOADS_FOLDER: Final = "uploads"
BATCH_PACKETS: Final = 4_000
BATCH_BYTES: Final = 32 * MIB
BUSY_PACKETS: Final = 200
"""A batch from which on acknowledgements wait for others of their stream."""
IDLE_S: Final = 0.1
"""Pause of the publishing thread when there is nothing to publish; also the longest wait for a packet."""
HOUSEKEEPING_S: Final = 1.0
FIRST_RETRY_S: Final = 0.2
LAST_RETRY_S: Final = 10.0
STOP_S: Final = 15.0

_UNSTORABLE: Final = (DataError, IntegrityError, ProtocolError, ArithmeticError, ValueError, TypeError, LookupError)
"""What a message itself can cause; whatever else goes wrong is not its fault, and it comes again."""

log = logging.getLogger(__name__)


class Bridge:
    """Start, stop; everything it knows is in the database and at the broker."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._uploads = UploadStore(context.settings.state / UPLOADS_FOLDER)
        self._holder = leases.new_holder()
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._housekept = 0.0
        self._refused = 0
        self._dropped = 0
        self._dropped_told = 0
        self._pacer = Pacer(context.settings.device_messages_per_s)
        self._acks = AckBox()

    def start(self) -> None:
        """Start the threads, and return; they connect as soon as the broker is there."""
        if self._thread is not None:
            return
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="bridge", daemon=True)
        self._thread.start()

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the bridge is connected and subscribed."""
        return self._ready.wait(timeout_s)

    def stop(self) -> None:
        """End the threads and give the lease back; waits at most `STOP_S`."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(STOP_S)

    @property
    def connected(self) -> bool:
        return self._ready.is_set()

    def _run(self) -> None:
        delay = FIRST_RETRY_S
        # A batch makes thousands of objects: the collector would look through the whole program several times in each.
        gc.collect()
        gc.freeze()
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._hold_lease()
                self._serve()
            except leases.LeaseLostError as error:
                log.debug("waiting: %s", error)
            except ServerError as error:
                log.warning("%s", error)
            except OSError as error:
                log.error("updates cannot be written: %s; nothing is acknowledged until they can", error)
            except Exception:
                log.exception("the bridge starts anew")
            if time.monotonic() - began > LAST_RETRY_S:
                delay = FIRST_RETRY_S
            self._stop.wait(delay)
            delay = min(LAST_RETRY_S, delay * 2)
        try:
            with self._context.database.session() as session:
                leases.release(session, LEASE, self._holder)
        except ServerError as error:
            log.warning("the lease was not given back: %s", error)

    def _serve(self) -> None:
        """One connection's life."""
        with self._context.database.session() as session:
            instance = publishing.state(session).instance
        connection = Connection(self._context.settings, f"edgewise-server-{instance}")
        publisher = threading.Thread(target=self._publish, args=(connection,), name="bridge-publisher", daemon=True)
        try:
            found = publishing.find_mark(connection)
            with self._context.database.session() as session:
                outgoing.retain(session, topics.SENTINEL, b"1")
                anew = publishing.reconcile(session, found)
            if anew:
                log.info("the broker lacks %d retained topics; publishing them again", anew)
            connection.subscribe(SUBSCRIPTIONS)
            publisher.start()
            self._connection = connection
            self._ready.set()
            while not self._stop.is_set() and not connection.lost:
                self._take_batch(connection)
            if not self._stop.is_set():
                raise BridgeError("the connection to the broker was lost")
        finally:
            self._ready.clear()
            self._connection = None
            connection.close()
            if publisher.ident is not None:
                publisher.join(STOP_S)

    def _take_batch(self, connection: Connection) -> None:
        due = self._acks.due_in(time.monotonic())
        first = connection.take(IDLE_S if due is None else min(due, IDLE_S))
        # Two busy threads would hand the interpreter over at every row that is written: they take turns.
        with connection.turn:
            packets = [] if first is None else [first, *_drain(connection)]
            now = time.monotonic()
            items = [item for packet in packets if (item := self._sort(packet)) is not None and self._admit(item, now)]
            try:
                answers = self._commit(items)
            except _UNSTORABLE:
                answers = self._commit_one_by_one(items)
            connection.acknowledge(packets)
            self._answer(connection, answers, busy=len(packets) >= BUSY_PACKETS)

    def _answer(self, connection: Connection, answers: Answers, *, busy: bool) -> None:
        for device_id, ack in answers.others:
            connection.send(topics.device(device_id, "ack"), encode(ack))
        for device_id, stream, through in answers.stored:
            self._acks.put(device_id, stream, through)
        connection.tell(
            (topics.device(device_id, "ack"), encode(Ack(stream=stream, through=through)))
            for device_id, stream, through in self._acks.take(time.monotonic(), self._pacer.may_go_on, wait=busy)
        )

    def _admit(self, item: Item, now: float) -> bool:
        """Whether the device keeps to its rate; chunks of updates have credits of their own."""
        if isinstance(item, ChunkItem) or self._pacer.admit(item.device_id, now):
            return True
        self._dropped += 1
        return False

    def _commit(self, items: list[Item]) -> Answers:
        """Store a batch, and do what is due by the clock; one transaction."""
        now = time.time()
        due = now - self._housekept >= HOUSEKEEPING_S
        if not items and not due:
            return Answers()
        settings = self._context.settings
        with self._context.database.session() as session:
            answers = take_in(session, self._context, self._uploads, items, now) if items else Answers()
            if due:
                leases.hold(session, LEASE, self._holder, now, settings.lease_s)
                answers.others += updates.free_stalled(session, now, settings.upload_stall_s)
                outgoing.forget_tombstones(session, now)
        if due:
            self._housekept = now
            if self._dropped > self._dropped_told:
                log.warning("dropped %d messages of devices that flood", self._dropped - self._dropped_told)
                self._dropped_told = self._dropped
        return answers

    def _commit_one_by_one(self, items: list[Item]) -> Answers:
        """After a batch could not be stored: refuse what cannot be stored alone, so that the rest is not held up."""
        answers = Answers()
        for item in items:
            try:
                answers.add(self._commit([item]))
            except _UNSTORABLE as error:
                self._refused += 1
                log.warning("a message of %s cannot be stored: %s", item.device_id, str(error)[:300])
                if isinstance(item, StreamedItem):
                    answers.add(self._keep_refused(item))
        return answers

    def _keep_refused(self, item: StreamedItem) -> Answers:
        try:
            return self._commit([item.refused()])
        except _UNSTORABLE as error:
            log.error("a message of %s cannot even be kept as refused: %s", item.device_id, str(error)[:300])
            return Answers()

    def _sort(self, packet: Packet) -> Item | None:
        if packet.topic in (topics.BROKER_STATE, topics.BROKER_PROBE):
            return None
        try:
            item = sort(packet.topic, packet.payload)
        except ProtocolError as error:
            self._refused += 1
            log.warning("refused a packet on %s (%s): %s", packet.topic[:120], error.code, str(error)[:300])
            return None
        if isinstance(item, StreamedItem) and item.kind == REFUSED:
            self._refused += 1
            log.warning("kept a message on %s as refused: it breaks the contract", packet.topic[:120])
        return item

    def _hold_lease(self) -> None:
        now = time.time()
        with self._context.database.session() as session:
            leases.hold(session, LEASE, self._holder, now, self._context.settings.lease_s)
        self._housekept = now

    def _publish(self, connection: Connection) -> None:
        while not self._stop.is_set() and not connection.lost:
            try:
                if not publishing.publish_next(self._context.database, self._context.blobs, connection):
                    self._stop.wait(IDLE_S)
            except ServerError as error:
                log.warning("publishing stopped: %s", error)
                connection.give_up()
            except Exception:
                log.exception("publishing failed")
                connection.give_up()


def _drain(connection: Connection) -> list[Packet]:
    """The packets that have come, at most one batch."""
    packets: list[Packet] = []
    size = 0
    while len(packets) < BATCH_PACKETS and size < BATCH_BYTES and (packet := connection.take(0.0)) is not None:
        packets.append(packet)
        size += len(packet.payload)
    return packets
