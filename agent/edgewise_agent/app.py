"""The composition root: makes the agent's parts, connects them, starts and stops them in order."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgewise_protocol import topics
from edgewise_protocol.facts import DeviceFacts
from edgewise_protocol.manifest import AGENT_MODEL
from edgewise_protocol.messages import Ack, Status, Want, decode, encode
from edgewise_protocol.structs import prepare_structs
from edgewise_protocol.targets import SignedFile

from edgewise_agent.config import AgentConfig
from edgewise_agent.download.downloader import Downloader, Patience
from edgewise_agent.durable import sweep
from edgewise_agent.engines import installed
from edgewise_agent.errors import ConfigError, EndpointError, SessionError, StateDamagedError
from edgewise_agent.identity import clones
from edgewise_agent.identity.facts import detect, emulated
from edgewise_agent.identity.identity import Identity, load_identity
from edgewise_agent.identity.instance import fingerprint, new_run
from edgewise_agent.identity.keeper import IdentityKeeper
from edgewise_agent.identity.link import SessionLink, timing_of
from edgewise_agent.install.activator import Activator, Health
from edgewise_agent.install.installer import Installer, Parts
from edgewise_agent.install.jobs import Worker
from edgewise_agent.install.self_test import SelfTester
from edgewise_agent.install.watcher import Watcher
from edgewise_agent.locking import lock_state
from edgewise_agent.maintenance import Maintenance
from edgewise_agent.observe.observer import Observer, ObserverConfig
from edgewise_agent.observe.outbox import Outbox
from edgewise_agent.reporting.pump import Pump
from edgewise_agent.reporting.reporter import Reporter
from edgewise_agent.selfupdate.checking import SelfChecker
from edgewise_agent.selfupdate.updater import SelfUpdate
from edgewise_agent.serving.http import HttpServer
from edgewise_agent.serving.table import ModelTable
from edgewise_agent.session.core import Policy
from edgewise_agent.session.proxy import parse_proxy
from edgewise_agent.session.retained import RetainedReader
from edgewise_agent.session.shell import Endpoint, Session
from edgewise_agent.store.room import Room
from edgewise_agent.store.store import Store
from edgewise_agent.trust.clock import ClockFloor, last_refresh
from edgewise_agent.trust.fetcher import RetainedFetcher
from edgewise_agent.trust.gate import Bearer, Gate
from edgewise_agent.trust.repository import Repository
from edgewise_agent.watchdog.supervision import Supervision

if TYPE_CHECKING:
    from edgewise_agent.learning.client import FederatedClient

log = logging.getLogger(__name__)

MIB: Final = 1 << 20
INSTALLED_FILE: Final = "installed.json"


class Agent:
    """One device's agent. `start` and `stop` once each, from the event loop that serves.

    Args:
        state: the state folder of an enrolled device.
        config: settings.

    Raises:
        NotEnrolledError, IdentityError, StateError, OutboxError, StorageError: it cannot begin.
    """

    def __init__(self, state: Path, config: AgentConfig) -> None:
        # Child processes run in folders of their own, where a relative path leads nowhere.
        self._state = state = state.absolute()
        self._config = config
        self._stopping = threading.Event()
        self._lock = lock_state(state)
        try:
            sweep(state)
            self._make(load_identity(state, datetime.now(UTC)))
            prepare_structs()
        except BaseException:
            self._lock.close()
            raise

    def _make(self, identity: Identity) -> None:
        state, config, card = self._state, self._config, identity.card
        self._identity = identity
        self.facts: DeviceFacts = detect(
            state, installed(config.gateway), card.simulated_board, config.board, gateway=config.gateway
        )
        simulated = self.facts.simulated
        self._instance, self._run = fingerprint(card.device_id), new_run()
        self.outbox = Outbox(state / "outbox.sqlite", config.outbox_max_mib * MIB)
        self.table = ModelTable(config.engine_threads, gateway=config.gateway)
        self.http = HttpServer(self.table, config.http_host, config.http_port)
        self._watchdog = Supervision(config.watchdog, self._summary, self._stalled)
        self.session = Session(
            self._endpoint(identity),
            [self._topic("assignment"), self._topic("ack"), topics.ALL_ROUND_OFFERS],
            self._birth,
            self._message,
            lambda mid: self._reader.subscribed(mid),
            self._came_online,
            self._went_offline,
            Policy(config.reconnect_min_s, config.reconnect_max_s),
            self._watchdog.beat("session"),
        )
        self._reader = RetainedReader(self.session, config.fetch_timeout_s)
        self.store = Store(state / "store", config.min_free_mib)
        metadata = state / "metadata"
        clock = self._clock = ClockFloor(
            state / "clock", identity.certificate_from.timestamp(), witness=lambda: last_refresh(metadata)
        )
        fetcher = RetainedFetcher(self._reader, self._want_metadata, config.want_wait_s)
        repository = Repository(metadata, identity.tuf_root, fetcher, clock)
        self._gate = Gate(repository, clock, Bearer(card.device_id, card.channel), self.store.has)
        self._downloader = Downloader(
            self.store,
            self._reader,
            self.session,
            self._want,
            Patience(config.want_attempts, config.want_wait_s),
        )
        self.reporter = Reporter(
            lambda payload: self.session.publish(self._topic("reported"), payload, retain=True),
            self.outbox,
            simulated,
        )
        self._pump = Pump(
            self.outbox,
            lambda leaf, payload: self.session.publish(self._topic(leaf), payload),
            config.resend_s,
            self._watchdog.beat("pump"),
        )
        self.outbox.on_put = self._pump.filled
        self.selfupdate = SelfUpdate(
            state,
            self.store,
            SelfChecker(state, config.agent_check_s),
            config.agent_confirm_s,
            self._unserved,
        )
        worker = Worker(
            self.store,
            self._downloader,
            SelfTester(config.self_test, config.engine_threads, simulated or emulated(config.gateway), config.gateway),
            self.selfupdate,
            self.facts,
            self._untrusted_bundle,
        )
        self.installer = Installer(
            state / INSTALLED_FILE,
            Parts(
                self._gate,
                self.store,
                Room(self.store, state / "store"),
                worker,
                Activator(self.store, self.table, self.selfupdate),
                self.reporter,
            ),
            config,
            lambda post: Watcher(
                config.probation,
                self._health,
                lambda: self.session.online,
                post,
                self._watchdog.beat("probation"),
            ),
            self._watchdog.beat("installer"),
        )
        self._observer = Observer(
            self.table,
            self.outbox,
            ObserverConfig(
                telemetry_interval_s=config.telemetry_interval_s,
                drift_window_samples=config.drift_window_samples,
                drift_window_s=config.drift_window_s,
                simulated=simulated,
                kll=config.kll,
            ),
        )
        self.http.add_metrics(self._observer.metrics)
        self.keeper = IdentityKeeper(
            state,
            identity,
            SessionLink(self.session, self._endpoint),
            self._gate.fleet_ca_pins,
            lambda kind, code, text: self.reporter.happened(kind, code, text, {}),
            timing_of(config.identity),
            self._watchdog.beat("identity"),
        )
        self.session.watch_endings(self.keeper.ended)
        self._served_before: set[str] = set()
        self._maintenance: Maintenance | None = None
        self._federated = self._make_federated()

    def _make_federated(self) -> FederatedClient | None:
        """The federated client, where there are data to learn from."""
        if not self._config.train_data:
            return None
        data = Path(self._config.train_data).absolute()
        if not data.is_file():
            raise ConfigError(f"train_data: {data} is not a file")
        from edgewise_agent.learning.client import FederatedClient

        return FederatedClient(
            publish=lambda topic, payload: self.session.publish(topic, payload),
            fetch=self._fetch,
            verify=self._gate.offer,
            data_path=data,
            state_dir=self._state / "learning",
            device_id=self._identity.card.device_id,
            simulated=self.facts.simulated,
            outbox=self.outbox,
        )

    @property
    def serving_url(self) -> str:
        """Base URL of the Open Inference Protocol endpoint, once started."""
        host = f"[{self._config.http_host}]" if ":" in self._config.http_host else self._config.http_host
        return f"http://{host}:{self.http.port}"

    # -- life ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the endpoint, bring the last good models into service, then connect.

        Raises:
            EndpointError: the endpoint cannot be opened.
            StorageError: the state cannot be written.
        """
        try:
            await self.http.start()
        except OSError as error:
            raise EndpointError(
                f"{self._config.http_host}:{self._config.http_port} cannot be listened on: {error.strerror or error}; "
                "end the program that uses the port, or set another http_port"
            ) from error
        self._maintenance = Maintenance(
            self._state,
            self.serving_url,
            self.facts.simulated,
            self._config.refresh_interval_s,
            self.installer.look_again,
        )
        self._served_before = {name for name, model in self.installer.state.models.items() if model.active}
        self._served_before.discard(AGENT_MODEL)
        self._observer.start()
        await asyncio.to_thread(self.installer.start)
        self._maintenance.start()
        self._pump.start()
        self.session.start()
        self.keeper.start()
        if self._clock.problem:
            self.reporter.happened("security", StateDamagedError.code, self._clock.problem, {})
        self._watchdog.ready()

    async def stop(self) -> None:
        """Stop working, say farewell, finish what was accepted, close. Call it once, also after a failed start."""
        self._stopping.set()
        self._watchdog.leave()
        if self._federated is not None:
            await asyncio.to_thread(self._federated.stop)
        await asyncio.to_thread(self.keeper.stop)
        await asyncio.to_thread(self.installer.stop)
        await asyncio.to_thread(self._observer.stop)
        await asyncio.to_thread(self._pump.stop)
        await asyncio.to_thread(self.session.stop)
        if self._maintenance is not None:
            await asyncio.to_thread(self._maintenance.stop)
        await self.http.stop()
        await asyncio.to_thread(self.table.close)
        await self._watchdog.stop()
        self.outbox.close()
        self._lock.close()

    # -- the agent itself ------------------------------------------------------------------

    def _health(self, model: str) -> Health:
        return self.selfupdate.health() if model == AGENT_MODEL else self.table.health(model)

    def _unserved(self) -> str:
        """The first model that served when this process began, is still assigned, and serves no more."""
        still = self._served_before & set(self.installer.state.models)
        lost = sorted(still - set(self.installer.serving))
        return f"{lost[0]} served under the agent before this one, and does not serve under this one" if lost else ""

    # -- the session's callbacks, which must not block --------------------------------------

    def _topic(self, leaf: str) -> str:
        return topics.device(self._identity.card.device_id, leaf)

    def _birth(self, session: str) -> Status:
        return Status(
            online=True,
            session=session,
            at=time.time(),
            facts=self.facts,
            serving_url=self.serving_url,
            certificate_serial=self.keeper.identity.validity.serial,
            instance=self._instance,
            run=self._run,
        )

    def _endpoint(self, identity: Identity) -> Endpoint:
        card = identity.card
        config, broker = self._config, card.broker
        return Endpoint(
            broker.host,
            config.broker_port or broker.port,
            card.device_id,
            config.keepalive_s,
            identity.tls(),
            config.broker_transport or broker.transport,
            broker.path,
            parse_proxy(config.proxy_url),
        )

    def _came_online(self) -> None:
        self._pump.online()
        self.keeper.online()
        self.reporter.republish()
        if self._maintenance is not None:
            self._maintenance.online(True)

    def _went_offline(self) -> None:
        self._reader.lost()
        self._pump.offline()
        if self._maintenance is not None:
            self._maintenance.online(False)

    def _message(self, topic: str, payload: bytes) -> None:
        if self._reader.deliver(topic, payload):
            return
        if topic == self._topic("assignment"):
            self.installer.hint(payload)
        elif topic == self._topic("ack"):
            ack = decode(Ack, payload)
            if ack.identity == clones.CODE:
                self.keeper.cloned()
            if ack.stream:
                self._pump.acknowledged(ack)
            if ack.round_id and self._federated is not None:
                self._federated.on_ack(ack)
        elif topic.startswith(f"{topics.PREFIX}/round/") and self._federated is not None and payload:
            self._federated.on_offer(payload)

    # -- what parts ask of each other --------------------------------------------------------

    def _want(self, want: Want) -> None:
        self.session.publish(self._topic("want"), encode(want))

    def _want_metadata(self, name: str) -> None:
        try:
            self._want(Want(metadata=(name,)))
        except SessionError as error:
            log.debug("metadata cannot be asked for", extra={"reason": str(error)})

    def _fetch(self, file: SignedFile) -> Path:
        """A signed file that is not to be served, from the store or the broker, for the federated client."""
        found = self.store.file(file)
        if found is not None:
            return found
        return self.store.keep_file(self._downloader.download(file, "round", self._stopping.is_set), file)

    def _summary(self) -> str:
        """One line for the service manager."""
        serving = len(self.installer.serving)
        link = "online" if self.session.online else f"offline: {self.session.last_error or 'connecting'}"
        return f"serving {serving} model{'s' * (serving != 1)} at {self.serving_url}; {link}"

    def _stalled(self, names: tuple[str, ...]) -> None:
        if self._maintenance is not None:
            self._maintenance.stalled(names)

    def _untrusted_bundle(self, file: SignedFile, error: Exception) -> None:
        code = getattr(error, "code", "internal")
        data = {"model": file.custom.model, "version": file.custom.version, "path": file.path}
        self.reporter.happened("security", code, str(error), data)
