"""The federated client: takes up signed offers, trains in a child process, uploads the update.

What happens next is decided in `round`; this shell verifies, fetches, starts, publishes and
remembers. One thread owns the round; fetching and training run beside it and report to it.
"""

from __future__ import annotations

import logging
import queue
import shutil
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from edgewise_protocol import messages, topics
from edgewise_protocol.bounds import MAX_OFFER_BYTES
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.messages import Ack, UpdateReady
from edgewise_protocol.rounds import Offer
from edgewise_protocol.targets import SignedFile
from msgspec import Meta

from edgewise_agent.errors import AgentError
from edgewise_agent.learning import round as rounds
from edgewise_agent.learning.errors import LocalDataError
from edgewise_agent.learning.events import RoundEvents
from edgewise_agent.learning.job import UPDATE_FILE, TrainJob
from edgewise_agent.learning.local_data import count_samples
from edgewise_agent.learning.memory import Remembered, RoundMemory
from edgewise_agent.learning.offers import asks_others, check_number, supersedes
from edgewise_agent.learning.process import TrainProcess
from edgewise_agent.learning.round import Round, Update
from edgewise_agent.observe.outbox import Outbox

log = logging.getLogger(__name__)

Publish = Callable[[str, bytes], None]
Fetch = Callable[[SignedFile], Path]
Verify = Callable[[bytes], Offer]

_INBOX: Final = 256
_MIN_SAMPLES: Final = 2
_STOP_S: Final = 15.0


class LearningLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the training process: seconds, MiB."""

    timeout_s: Annotated[float, Meta(gt=0, le=7 * 24 * 3600)] = 3600.0
    memory_mib: Annotated[int, Meta(ge=128)] = 1024
    nice: Annotated[int, Meta(ge=0, le=19)] = 10
    stall_scale: Annotated[float, Meta(gt=0, le=100)] = 1.0
    """Times the waits of an upload that makes no progress."""


class _OfferIn(NamedTuple):
    payload: bytes


class _AckIn(NamedTuple):
    ack: Ack


class _Progress(NamedTuple):
    """Of work beside the thread; of no meaning when its round is no longer the present one."""

    round_id: str
    event: rounds.Event
    bundle: Path | None = None
    weights: Path | None = None


class _Stop(NamedTuple):
    pass


_Inbox = _OfferIn | _AckIn | _Progress | _Stop


class FederatedClient:
    """Takes part in rounds, one at a time.

    Args:
        publish: sends bytes on a topic, QoS 1; may raise while there is no connection.
        fetch: downloads a signed file, verifies it, gives its path; blocks.
        verify: what `edgewise_protocol.rounds.verify_offer` does, with this device's trust.
        data_path: safetensors with the local `x` and `y`; None takes part in nothing.
        state_dir: a folder of the client's own.
        outbox: gets an event for each thing that happens to a round.
    """

    def __init__(
        self,
        publish: Publish,
        fetch: Fetch,
        verify: Verify,
        data_path: Path | None,
        state_dir: Path,
        device_id: str,
        simulated: bool,
        outbox: Outbox,
        limits: LearningLimits | None = None,
    ) -> None:
        self._publish = publish
        self._fetch = fetch
        self._verify = verify
        self._data_path = data_path
        self._folder = state_dir
        self._device_id = device_id
        self._simulated = simulated
        self._events = RoundEvents(outbox)
        self._limits = limits or LearningLimits()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._memory = RoundMemory(self._folder)
        self._inbox: queue.Queue[_Inbox] = queue.Queue(_INBOX)
        self._round: Round | None = None
        self._offer: Offer | None = None
        self._files: tuple[Path, Path] | None = None
        self._process: TrainProcess | None = None
        self._deadline: float | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="federated", daemon=True)
        self._thread.start()

    @property
    def state(self) -> tuple[str, str]:
        """(round id, state) of the present round; empty strings before the first."""
        now = self._round
        return (now.round_id, now.state) if now is not None else ("", "")

    def on_offer(self, payload: bytes) -> None:
        """A retained offer has arrived. Never blocks; an empty payload clears an offer and is no matter."""
        if payload and len(payload) <= MAX_OFFER_BYTES:
            self._post(_OfferIn(payload))

    def on_ack(self, ack: Ack) -> None:
        """The server has answered. Never blocks; what is not about an upload is no matter."""
        if ack.round_id:
            self._post(_AckIn(ack))

    def stop(self) -> None:
        """End the training process, if any, and the thread."""
        self._stopping = True
        self._end_process()
        self._post(_Stop())
        self._thread.join(_STOP_S)
        # The thread may have been about to start one.
        self._end_process()

    def _end_process(self) -> None:
        if (process := self._process) is not None:
            process.end()

    def _post(self, message: _Inbox) -> None:
        try:
            self._inbox.put_nowait(message)
        except queue.Full:
            # Offers are retained and acknowledgements are asked for again: nothing is lost for good.
            log.warning("the federated client is behind; a message was not taken")

    # ------------------------------------------------------------- the thread

    def _run(self) -> None:
        while not self._stopping:
            wait = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            try:
                message = self._inbox.get(timeout=wait)
            except queue.Empty:
                self._deadline = None
                self._advance(rounds.Stalled())
                continue
            if self._stopping:
                # That the process was ended is no verdict on the round: it stays as remembered.
                break
            try:
                self._take(message)
            except Exception as error:
                # The thread must outlive whatever a round meets.
                log.exception("a federated round failed")
                self._fail(getattr(error, "code", "round"), f"{type(error).__name__}: {error}")

    def _fail(self, code: str, text: str) -> None:
        try:
            self._advance(rounds.Failed(code, text))
        except AgentError as error:
            log.error("the end of a federated round could not be remembered: %s", error)

    def _take(self, message: _Inbox) -> None:
        match message:
            case _OfferIn(payload):
                self._consider(payload)
            case _AckIn(ack) if self._round is not None and ack.round_id == self._round.round_id:
                self._advance(rounds.Acked(ack.chunks_through, ack.credits, ack.complete, ack.error))
            case _Progress(round_id, event, bundle, weights) if self._is_present(round_id):
                if bundle is not None and weights is not None:
                    self._files = (bundle, weights)
                self._advance(event)

    def _is_present(self, round_id: str) -> bool:
        return self._round is not None and self._round.round_id == round_id

    def _consider(self, payload: bytes) -> None:
        if self._data_path is None or asks_others(payload, self._device_id):
            return
        try:
            offer = self._verify(payload)
            known = self._memory.get(offer.body.round_id)
            if known is None:
                check_number(offer, self._memory.newest(offer.body.federation))
        except (ProtocolError, AgentError) as error:
            self._events.report_once(payload, "round-offer-refused", str(error), {"reason": error.code})
            return
        now, round_id = self._round, offer.body.round_id
        if now is not None and now.round_id == round_id and now.state not in ("done", "failed"):
            return
        if now is not None and now.state not in ("done", "failed"):
            if self._offer is not None and not supersedes(offer, self._offer):
                text = f"busy with the round {now.round_id}"
                self._events.report_once(payload, "round-declined", text, {"reason": "busy"}, offer=offer)
                return
            self._advance(rounds.Failed("round-superseded", f"the round {round_id} has taken its place"))
        if known is not None:
            self._resume(offer, known)
            return
        reason = self._reason_to_decline(self._data_path)
        if reason:
            self._events.report_once(payload, "round-declined", reason, {"reason": reason}, offer=offer)
            return
        self._begin(offer)

    def _resume(self, offer: Offer, known: Remembered) -> None:
        """A round that this device has taken up before: never trained again."""
        round_id, update = offer.body.round_id, known.update
        if known.state == "ready" and update is not None and self._has(round_id, update):
            self._offer = offer
            self._round, effects = rounds.resumed(round_id, update)
            self._carry_out(effects)
        elif known.state in ("training", "ready"):
            self._memory.put(round_id, "failed")
            self._events.report("round-interrupted", "the round was interrupted; it is not trained again", offer=offer)

    def _reason_to_decline(self, data: Path) -> str:
        try:
            samples = count_samples(data)
        except LocalDataError as error:
            return str(error)
        return "" if samples >= _MIN_SAMPLES else f"there are {samples} local samples; at least 2 are needed"

    def _begin(self, offer: Offer) -> None:
        round_id = offer.body.round_id
        self._memory.take_up(offer.body.federation, offer.body.number, offer.keys)
        self._offer, self._files = offer, None
        self._round = Round(round_id=round_id)
        self._forget_files(but=round_id)
        self._advance(rounds.Begun())

    def _advance(self, event: rounds.Event) -> None:
        if self._round is not None:
            self._round, effects = rounds.advance(self._round, event)
            if self._round.state in ("done", "failed"):
                self._deadline = None
                self._end_process()
            self._carry_out(effects)

    # ------------------------------------------------------------- effects

    def _carry_out(self, effects: tuple[rounds.Effect, ...]) -> None:
        now, offer = self._round, self._offer
        if now is None or offer is None:
            return
        for effect in effects:
            match effect:
                case rounds.Fetch():
                    self._beside(now.round_id, lambda: self._fetched(offer))
                case rounds.Train():
                    self._train(now.round_id, offer)
                case rounds.Remember():
                    self._memory.put(now.round_id, _REMEMBERED[now.state], now.update)
                case rounds.Announce() if now.update is not None:
                    self._announce(now.round_id, now.update)
                case rounds.Send(first, end) if now.update is not None:
                    self._send(now.round_id, now.update, first, end)
                case rounds.Watch(seconds):
                    self._deadline = time.monotonic() + seconds * self._limits.stall_scale
                case rounds.Report(code, text):
                    self._events.report(code, text, dict(now.update.metrics) if now.update else {}, offer)
                case rounds.ForgetFiles():
                    self._forget_files()

    def _beside(self, round_id: str, work: Callable[[], _Progress]) -> None:
        def run() -> None:
            try:
                done = work()
            except (AgentError, ProtocolError) as error:
                done = _Progress(round_id, rounds.Failed(error.code, str(error)))
            except OSError as error:
                done = _Progress(round_id, rounds.Failed("round", f"{type(error).__name__}: {error}"))
            self._inbox.put(done)

        threading.Thread(target=run, name=f"round-{round_id}"[:60], daemon=True).start()

    def _fetched(self, offer: Offer) -> _Progress:
        bundle, weights = self._fetch(offer.training), self._fetch(offer.weights)
        return _Progress(offer.body.round_id, rounds.Fetched(), bundle, weights)

    def _train(self, round_id: str, offer: Offer) -> None:
        if self._files is None or self._data_path is None:
            return
        folder = self._folder / round_id
        folder.mkdir(exist_ok=True)
        body, limits = offer.body, self._limits
        left_s = (offer.expires - datetime.now(UTC)).total_seconds()
        timeout_s = max(1.0, min(limits.timeout_s, left_s))
        job = TrainJob(
            bundle=str(self._files[0].absolute()),
            weights=str(self._files[1].absolute()),
            data=str(self._data_path.absolute()),
            model=body.model,
            epochs=body.epochs,
            batch_size=body.batch_size,
            lr=body.lr,
            mu=body.mu,
            max_steps=body.max_steps,
            seed=body.seed,
            device_id=self._device_id,
            cpu_s=int(timeout_s) + 1,
            memory_mib=limits.memory_mib,
            nice=limits.nice,
        )
        process = self._process = TrainProcess(folder.absolute())
        self._beside(round_id, lambda: _Progress(round_id, rounds.Trained(process.run(job, timeout_s))))

    def _announce(self, round_id: str, update: Update) -> None:
        message = UpdateReady(
            round_id=round_id,
            length=update.length,
            sha256=update.sha256,
            samples=update.samples,
            metrics=update.metrics,
            simulated=self._simulated,
        )
        self._say(topics.device(self._device_id, "update-ready"), messages.encode(message))

    def _send(self, round_id: str, update: Update, first: int, end: int) -> None:
        try:
            with (self._folder / round_id / UPDATE_FILE).open("rb") as file:
                for chunk in range(first, end):
                    offset, length = update.span(chunk)
                    file.seek(offset)
                    self._say(topics.update(self._device_id, round_id, chunk), file.read(length))
        except OSError as error:
            self._advance(rounds.Failed("round", f"the update cannot be read: {error}"))

    def _say(self, topic: str, payload: bytes) -> None:
        try:
            self._publish(topic, payload)
        except (AgentError, OSError, ValueError, RuntimeError) as error:
            # Not sent is as good as lost on the way: the watch sends it again.
            log.warning("%s was not published: %s", topic, error)

    # ------------------------------------------------------------- files

    def _has(self, round_id: str, update: Update) -> bool:
        try:
            return (self._folder / round_id / UPDATE_FILE).stat().st_size == update.length
        except OSError:
            return False

    def _forget_files(self, but: str = "") -> None:
        """Delete the folders of every round but one: there is one round at a time."""
        for folder in self._folder.iterdir():
            if folder.is_dir() and folder.name != but:
                shutil.rmtree(folder, ignore_errors=True)


_REMEMBERED: Final[dict[str, Any]] = {
    "training": "training",
    "ready": "ready",
    "uploading": "ready",
    "done": "done",
    "failed": "failed",
}
