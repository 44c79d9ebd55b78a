"""The orchestrator: a level-triggered loop under a lease.

Each thing that may move is looked at in its own transaction, which first takes or prolongs the lease; a process
that has lost it cannot commit. Nothing is remembered between two rounds, so it may be killed anywhere.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from sqlmodel import Session

from edgewise_server.context import UPLOADS_FOLDER, Context
from edgewise_server.drift.thresholds import DriftSettings
from edgewise_server.errors import ServerError
from edgewise_server.federation.facts import Aggregate
from edgewise_server.models.base import utc_now
from edgewise_server.orchestrator import federations as federation_steps
from edgewise_server.orchestrator import rollouts as rollout_steps
from edgewise_server.orchestrator.retention import sweep
from edgewise_server.services import (
    assignments,
    devices,
    federations,
    jobs,
    leases,
    monitoring,
    rollout_facts,
    rollouts,
)
from edgewise_server.services.baselines import Baselines
from edgewise_server.uploads.store import UploadStore

LEASE: Final = "orchestrator"
OFFLINE_AFTER_S: Final = 30.0
"""A federation's client that was last heard of longer ago is not waited for."""
STEPS: Final = 8
"""Steps of one federation in one round of the loop."""
SLOW_S: Final = 5.0
"""Pause between two looks at what changes slowly: late joiners, renewals, silent workers."""
RENEWAL_S: Final = 5.0
"""How long one round signs assignments again before rollouts have their turn."""
RARE_S: Final = 60.0
"""Pause between two sweeps of what is old or nothing refers to."""
STOP_S: Final = 30.0

log = logging.getLogger(__name__)


class Orchestrator:
    """`start` and `stop`, or `tick` by hand."""

    def __init__(self, context: Context, drift: DriftSettings | None = None) -> None:
        self._context = context
        self._drift = drift or DriftSettings()
        self._baselines = Baselines(context.blobs)
        self._uploads = UploadStore(context.settings.state / UPLOADS_FOLDER)
        self._holder = leases.new_holder()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._slow = self._rare = float("-inf")
        self._renewed_to = ""

    def start(self) -> None:
        """Start the loop's thread."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="orchestrator", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the loop and give the lease back; waits at most `STOP_S`."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(STOP_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.tick(time.time())
            except Exception:
                log.exception("a round of the orchestrator failed; the next one begins anew")
            self._stop.wait(self._context.settings.tick_s)
        try:
            with self._context.database.session() as session:
                leases.release(session, LEASE, self._holder)
        except ServerError as error:
            log.warning("the lease was not given back: %s", error)

    def tick(self, now: float) -> bool:
        """One round. Returns whether this process has the lease."""
        slow, rare = now - self._slow >= SLOW_S, now - self._rare >= RARE_S
        try:
            rollout_ids = self._do(now, lambda session: rollout_steps.due(session, with_completed=slow)) or []
            for rollout_id in rollout_ids:
                self._do(now, partial(self._move_rollout, rollout_id=rollout_id, now=now))
            for federation_id in self._do(now, federation_steps.due) or []:
                self._move_federation(federation_id, now)
            while self._do(now, lambda session: monitoring.score_pending(session, self._baselines, self._drift, now)):
                if self._stop.is_set():
                    break
            if slow:
                self._do(now, lambda session: jobs.requeue_silent(session, now))
                if self._do(now, lambda session: devices.finish_decommissions(session, utc_now())):
                    self._context.refresh_crl(force=True)
                self._slow = now
            if slow or self._renewed_to:
                self._renew_assignments(now)
            if rare:
                self._do(now, assignments.collect_blobs)
                sweep(self._context, self._uploads, partial(self._do, now), now, self._stop.is_set)
                self._rare = now
        except leases.LeaseLostError as error:
            log.debug("waiting: %s", error)
            return False
        return True

    def _renew_assignments(self, now: float) -> None:
        """Sign again what is due, batch by batch, for `RENEWAL_S`; the next round goes on behind the last device.

        After a rotation of the director's key the assignments of the whole fleet are due at once.
        """
        until = time.monotonic() + RENEWAL_S
        while not self._stop.is_set() and time.monotonic() < until:
            batch = partial(assignments.renew, context=self._context, now=now, after=self._renewed_to)
            done = self._do(now, batch)
            self._renewed_to = done.last if done is not None else ""
            if not self._renewed_to:
                return

    def _do(self, now: float, step: Callable[[Session], Any]) -> Any:
        """One step in one transaction under the lease. What goes wrong with it does not stop the others."""
        try:
            with self._context.database.session() as session:
                self._hold(session, now)
                return step(session)
        except leases.LeaseLostError:
            raise
        except ServerError as error:
            log.warning("a step failed and is tried again: %s (%s)", error, error.code)
            return None
        except Exception:
            # What one device or rollout causes must not keep the fleet from its renewals.
            log.exception("a step failed and is tried again")
            return None

    def _hold(self, session: Session, now: float) -> None:
        leases.hold(session, LEASE, self._holder, now, self._context.settings.lease_s)

    def _move_rollout(self, session: Session, rollout_id: str, now: float) -> int:
        return rollout_steps.move(session, self._context, rollouts.get(session, rollout_id), now)

    def _move_federation(self, federation_id: str, now: float) -> None:
        def step(session: Session) -> Any:
            federation = federations.get(session, federation_id)
            return federation_steps.move(
                session,
                self._context,
                federation,
                self._uploads,
                lambda device: rollout_facts.is_online(device, now, OFFLINE_AFTER_S),
                now,
            )

        for _ in range(STEPS):
            decision = self._do(now, step)
            if decision is None:
                return
            if isinstance(decision, Aggregate):
                federation_steps.run_aggregation(
                    self._context,
                    self._uploads,
                    federation_id,
                    decision.number,
                    lambda session: self._hold(session, time.time()),
                    time.time,
                )
