"""Danger: two processes believe that they hold one lease; a job is lost with its worker, or done by two."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import pytest
from edgewise_server.errors import ConflictError
from edgewise_server.services import jobs, leases


def hold(context: Any, holder: str, now: float) -> bool:
    try:
        with context.database.session() as session:
            leases.hold(session, "thing", holder, now, 10)
    except leases.LeaseLostError:
        return False
    return True


def test_one_holder_at_a_time_and_the_next_after_the_end(context: Any) -> None:
    a, b = leases.new_holder(), leases.new_holder()
    assert hold(context, a, 0) and not hold(context, b, 9.9)
    assert hold(context, a, 8)
    assert not hold(context, b, 11) and hold(context, b, 18.1)
    assert not hold(context, a, 19)
    with context.database.session() as session:
        leases.release(session, "thing", a)  # not its own
    assert not hold(context, a, 19)
    with context.database.session() as session:
        leases.release(session, "thing", b)
    assert hold(context, a, 19)


def test_a_dead_process_of_this_host_need_not_be_waited_for(context: Any) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(30)
    child = process.pid
    assert hold(context, f"{socket.gethostname()[:32]}:{child}:x", 0)
    assert hold(context, leases.new_holder(), 1)
    assert not hold(context, f"another-host:{child}:x", 2)


def add(context: Any, kind: str, now: float) -> str:
    with context.database.session() as session:
        return jobs.add(session, kind, {"model": "digits"}, now).id


def test_jobs_are_claimed_in_order_by_kind_and_finished_by_their_worker(context: Any) -> None:
    first, second = add(context, "promote", 1), add(context, "sign-offer", 2)
    with context.database.session() as session:
        assert jobs.claim(session, "w1", ["retrain"], 3) is None
        claimed = jobs.claim(session, "w1", ["sign-offer", "promote"], 3)
        assert claimed is not None and (claimed.id, claimed.attempts) == (first, 1)
        other = jobs.claim(session, "w2", ["sign-offer", "promote"], 3)
        assert other is not None and other.id == second
    with context.database.session() as session:
        with pytest.raises(ConflictError):
            jobs.finish(session, first, "w2", {}, 4)
        jobs.finish(session, first, "w1", {"version": 2}, 4)
        assert jobs.finish(session, first, "w1", {"version": 9}, 5).result == {"version": 2}
        jobs.fail(session, second, "w2", "no key", 5)
        assert jobs.get(session, second).error == "no key"


def test_a_silent_worker_loses_its_job_and_the_third_time_it_fails(context: Any) -> None:
    job = add(context, "promote", 0)
    now = 0.0
    for attempt in range(1, jobs.MAX_ATTEMPTS + 1):
        with context.database.session() as session:
            claimed = jobs.claim(session, f"w{attempt}", ["promote"], now)
            assert claimed is not None and claimed.attempts == attempt
            jobs.heartbeat(session, job, f"w{attempt}", now + 30)
            assert jobs.requeue_silent(session, now + 30 + jobs.SILENT_S - 1) == 0
            assert jobs.requeue_silent(session, now + 30 + jobs.SILENT_S + 1) == 1
        now += 100
        with context.database.session() as session, pytest.raises(ConflictError):
            jobs.heartbeat(session, job, f"w{attempt}", now)
    with context.database.session(read_only=True) as session:
        assert jobs.get(session, job).state == "failed"
