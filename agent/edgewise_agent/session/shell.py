"""The paho shell of the session core: one thread, one connection at a time, MQTT 5.

Every connection is a new client with a new session id in its last will. Nothing is queued
across connections here: what must arrive is kept by the outbox and the reporter.
"""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import paho.mqtt.client as mqtt
from edgewise_protocol import topics
from edgewise_protocol.bounds import MAX_PACKET_BYTES
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.messages import Status, encode
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgewise_agent.errors import AgentError, ProxyError, SessionError
from edgewise_agent.session import core
from edgewise_agent.session.client import CONNECT_TIMEOUT_S, Client
from edgewise_agent.session.endings import Ending, classify
from edgewise_agent.session.proxy import Proxy
from edgewise_agent.watchdog.liveness import IDLE_S
from edgewise_agent.watchdog.pulse import Beat, no_beat

log = logging.getLogger(__name__)

_GREETING_TIMEOUT_S = 15.0
"""A connection that has not become online by then is given up."""
_FAREWELL_TIMEOUT_S = 3.0
_MAX_QUEUED = 1_000

OnMessage = Callable[[str, bytes], None]
OnSubscribed = Callable[[int], None]


@dataclass(frozen=True)
class Endpoint:
    """Where the broker is, and as whom to speak to it."""

    host: str
    port: int
    device_id: str
    keepalive_s: int = 30
    tls: ssl.SSLContext | None = None
    transport: Literal["tcp", "websockets"] = "tcp"
    path: str = "/mqtt"
    """Of the WebSocket."""
    proxy: Proxy | None = None


class Session:
    """A connection that comes back by itself. Methods may be called from any thread.

    Args:
        endpoint: broker and identity.
        subscriptions: topic filters to hold while online.
        birth: makes the `Status` of a birth for a session id.
        on_message: called on the session's thread for every message; must not block.
        on_subscribed: called on the session's thread with the packet id of each SUBACK.
        on_online, on_offline: called on the session's thread; must not block.
        beat: called at each step of the connection's thread, and while the next connection is awaited.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        subscriptions: Sequence[str],
        birth: Callable[[str], Status],
        on_message: OnMessage,
        on_subscribed: OnSubscribed,
        on_online: Callable[[], None],
        on_offline: Callable[[], None],
        policy: core.Policy | None = None,
        beat: Beat = no_beat,
    ) -> None:
        self._endpoint = endpoint
        self._beat = beat
        self._subscriptions = tuple(subscriptions)
        self._birth = birth
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._on_online = on_online
        self._on_offline = on_offline
        self._policy = policy or core.Policy()
        self._status_topic = topics.device(endpoint.device_id, "status")
        self._state = core.SessionState()
        self._lock = threading.RLock()
        self._client: mqtt.Client | None = None
        self._greeting = -1
        self._callbacks_on = 0
        self._online = threading.Event()
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="session", daemon=True)
        self.last_error = ""
        self._on_ending: Callable[[Ending], None] = lambda _: None
        self._patience = self._policy
        self._nudged = threading.Event()
        self._opened = self._accepted = False
        self._connack = 0

    # -- what others call ------------------------------------------------------------------

    @property
    def online(self) -> bool:
        """Whether the broker has acknowledged the subscriptions of the present connection."""
        return self._online.is_set()

    @property
    def on_own_thread(self) -> bool:
        """Whether the caller runs in one of the session's callbacks, which must never wait for a message."""
        return threading.get_ident() == self._callbacks_on

    def wait_online(self, timeout: float) -> bool:
        return self._online.wait(timeout)

    def start(self) -> None:
        self._thread.start()

    def watch_endings(self, on_ending: Callable[[Ending], None]) -> None:
        """Have a callback told how each connection ended; it runs on the session's thread and must not block."""
        self._on_ending = on_ending

    def use(self, endpoint: Endpoint) -> None:
        """Speak to this endpoint from the next connection on, and begin that connection now."""
        self._endpoint = endpoint
        self._nudged.set()
        self.reconnect("the device's identity was renewed")

    def slow_down(self, slow: bool) -> None:
        """Try the broker only after about the longest wait, or as often as the policy says."""
        self._policy = replace(self._patience, minimum=self._patience.maximum) if slow else self._patience

    def stop(self) -> None:
        """Say farewell and end the thread. Idempotent."""
        self._stop.set()
        self._nudged.set()
        self._feed(core.Stopped())
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(CONNECT_TIMEOUT_S + _FAREWELL_TIMEOUT_S)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Hand a message to the connection, QoS 1.

        Raises:
            SessionError: there is no connection, or its queue is full.
        """
        client = self._connected()
        try:
            info = client.publish(topic, payload, qos=1, retain=retain)
        except ValueError as error:
            raise SessionError(f"{topic} cannot be published: {error}") from error
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise SessionError(f"{topic} cannot be published: {mqtt.error_string(info.rc)}")

    def subscribe(self, filters: Sequence[str]) -> int:
        """Subscribe in one packet; returns its id. Raises `SessionError` when offline."""
        rc, mid = self._connected().subscribe([(name, SubscribeOptions(qos=1)) for name in filters])
        if rc != MQTTErrorCode.MQTT_ERR_SUCCESS or mid is None:
            raise SessionError(f"the subscription failed: {mqtt.error_string(rc)}")
        return mid

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe where there is a connection; without one there is nothing to undo."""
        with contextlib.suppress(SessionError):
            self._connected().unsubscribe(list(filters))

    def reconnect(self, reason: str) -> None:
        """Give up the present connection, e.g. because an answer never came on it."""
        client = self._client
        if client is not None:
            log.warning("the connection is given up", extra={"reason": reason})
            client.disconnect()

    # -- the thread ------------------------------------------------------------------------

    def _connected(self) -> mqtt.Client:
        client = self._client
        if client is None or not self._online.is_set():
            raise SessionError("the broker is not connected")
        return client

    def _run(self) -> None:
        self._feed(core.Started(secrets.token_hex(8)))

    def _feed(self, event: core.Event) -> None:
        """Step the core, then carry out the effects; a wait or a connection ends in the next event."""
        next_event: core.Event | None = event
        while next_event is not None:
            with self._lock:
                self._state, effects = core.step(self._state, next_event, self._policy)
            next_event = None
            for effect in effects:
                next_event = self._carry_out(effect) or next_event

    def _carry_out(self, effect: core.Effect) -> core.Event | None:
        match effect:
            case core.Connect(session=session):
                reason = self._live(session)
                if not self._stop.is_set():
                    self.last_error = reason
                    log.info("the broker is not connected", extra={"reason": reason})
                return core.Lost(time.monotonic(), random.random())  # noqa: S311 - spreads reconnects
            case core.Wait(seconds=seconds):
                return None if self._rest(seconds) else core.WaitOver(secrets.token_hex(8))
            case core.Subscribe():
                if self._client is not None:
                    wanted = [(name, SubscribeOptions(qos=1)) for name in self._subscriptions]
                    self._greeting = self._client.subscribe(wanted)[1] or -1
            case core.Birth(session=session):
                if self._client is not None:
                    self._client.publish(self._status_topic, encode(self._birth(session)), qos=1, retain=True)
            case core.TellOnline():
                self._online.set()
                self.last_error = ""
                log.info("online")
                self._on_online()
            case core.TellOffline():
                self._online.clear()
                self._on_offline()
            case core.Farewell(session=session):
                self._farewell(session)
            case core.Drop():
                if self._client is not None:
                    self._client.disconnect()
        return None

    def _rest(self, seconds: float) -> bool:
        """Wait, and say meanwhile that this thread lives; true if the session stops."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._beat()
            if self._nudged.wait(min(left, IDLE_S)):
                break
        self._nudged.clear()
        return self._stop.is_set()

    def _live(self, session: str) -> str:
        """Open a connection and serve it until it ends; returns why it ended."""
        client = self._make_client(session)
        self._client = client
        why = ["the broker did not answer"]
        self._ended.clear()
        self._opened = self._accepted = tls_failed = False
        self._connack = disconnect = 0

        def disconnected(_client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
            nonlocal disconnect
            why.append(str(reason))
            disconnect = int(reason.value)
            self._ended.set()

        client.on_disconnect = disconnected
        try:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.MaximumPacketSize = MAX_PACKET_BYTES
            client.connect(
                self._endpoint.host,
                self._endpoint.port,
                keepalive=self._endpoint.keepalive_s,
                clean_start=True,
                properties=properties,
            )
            client.loop_start()
            if not self._ended.wait(_GREETING_TIMEOUT_S) and self._online.is_set() and not self._stop.is_set():
                self._ended.wait()
            return client.ended_by or why[-1]
        except (OSError, ValueError, mqtt.WebsocketConnectionError, ProxyError) as error:
            # Over WebSocket a refused certificate ends the connection within paho's opening handshake.
            tls_failed = isinstance(error, ssl.SSLError | mqtt.WebsocketConnectionError)
            return f"{type(error).__name__}: {error}"
        finally:
            client.disconnect()
            client.loop_stop()
            # Thread ids are used again: the next thread of this id is not the session's.
            self._callbacks_on = 0
            self._client = None
            if not self._stop.is_set():
                ending = classify(
                    tls=self._endpoint.tls is not None,
                    opened=self._opened,
                    accepted=self._accepted,
                    connack=self._connack,
                    disconnect=disconnect,
                    tls_failed=tls_failed,
                )
                self._on_ending(ending)

    def _make_client(self, session: str) -> Client:
        client = Client(
            self._beat,
            CallbackAPIVersion.VERSION2,
            client_id=self._endpoint.device_id,
            protocol=mqtt.MQTTv5,
            transport=self._endpoint.transport,
            reconnect_on_failure=False,
        )
        client.proxy = self._endpoint.proxy
        client.ws_set_options(self._endpoint.path)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_queued_messages_set(_MAX_QUEUED)
        if self._endpoint.tls is not None:
            client.tls_set_context(self._endpoint.tls)
        client.will_set(self._status_topic, encode(Status(online=False, session=session)), qos=1, retain=True)
        client.on_socket_open = self._socket_opened
        client.on_connect = self._connected_callback
        client.on_subscribe = self._subscribed_callback
        client.on_message = self._message_callback
        return client

    def _socket_opened(self, _client: mqtt.Client, _data: Any, _sock: Any) -> None:
        self._opened = True

    def _connected_callback(
        self, client: mqtt.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        self._callbacks_on = threading.get_ident()
        if reason.is_failure:
            self._connack = int(reason.value)
            log.warning("the broker refuses this device", extra={"reason": str(reason)})
            client.disconnect()
        else:
            self._accepted = True
            self._feed(core.Accepted())

    def _subscribed_callback(
        self, client: mqtt.Client, _data: Any, mid: int, reasons: list[ReasonCode], _properties: Any
    ) -> None:
        if mid == self._greeting:
            if any(reason.is_failure for reason in reasons):
                log.warning("the broker refuses a subscription")
                client.disconnect()
            else:
                self._feed(core.Subscribed(time.monotonic()))
        else:
            self._on_subscribed(mid)

    def _message_callback(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            self._on_message(message.topic, bytes(message.payload))
        except (AgentError, ProtocolError) as error:
            log.warning("a message was refused", extra={"topic": message.topic[:200], "reason": str(error)})
        except Exception:
            # paho would end its thread, and the connection with it, without a word: for good.
            log.exception("a message could not be handled")

    def _farewell(self, session: str) -> None:
        client = self._client
        if client is None:
            return
        status = Status(online=False, session=session, at=time.time())
        info = client.publish(self._status_topic, encode(status), qos=1, retain=True)
        # The farewell is a courtesy: a broker that does not answer must not hold up the stop.
        with contextlib.suppress(ValueError, RuntimeError):
            info.wait_for_publish(_FAREWELL_TIMEOUT_S)
        client.disconnect()
