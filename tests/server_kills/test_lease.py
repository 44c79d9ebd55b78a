"""Danger: an orchestrator that was paused past its lease goes on where it stood, and does what another has done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from edgewise_server.models.leases import Lease
from edgewise_server.models.rollouts import RolloutDevice
from sqlmodel import select

LEASE_S = 2
PAUSES = 4

PAUSING = """
import os, signal, sys
from edgewise_server.services import assignments

# the process stops itself in the middle of its transaction, right after it has signed an assignment
assign, left = assignments.assign, [int(os.environ.pop("PAUSE_AFTER", "0"))]

def pausing(*arguments):
    made = assign(*arguments)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    return made

assignments.assign = pausing
from edgewise_server.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


class Orchestrators:
    """Real processes of `--role orchestrator` on one site, beside a process with the API and one with the bridge."""

    def __init__(self, site: Any, folder: Path) -> None:
        self.site, self._folder = site, folder
        self._env = site.env | {"EDGEWISE_SERVER_LEASE_S": str(LEASE_S)}
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, role: str, pause_after: int = 0) -> subprocess.Popen[bytes]:
        port = str(self.site.http.base_url.port)
        words = ["run", "--state", str(self.site.state), "--role", role, "--port", port]
        env = self._env | ({"PAUSE_AFTER": str(pause_after)} if pause_after else {})
        with (self._folder / f"{role}-{len(self._running)}.log").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-c", PAUSING, *words], env=env, stdout=log, stderr=log)
        self._running.append(process)
        return process

    def holder(self) -> int:
        """Process id in the orchestrator's lease."""
        with self.site.context.database.session(read_only=True) as session:
            lease = session.exec(select(Lease).where(Lease.name == "orchestrator")).first()
        return 0 if lease is None else int(lease.holder.split(":")[1])

    def wait_for(self, what: str, look: Callable[[], Any], timeout_s: float = 60) -> Any:
        deadline, pause = time.monotonic() + timeout_s, threading.Event()
        while not (found := look()):
            assert time.monotonic() < deadline, f"waiting for {what}: {self.logs()}"
            pause.wait(0.02)
        return found

    def logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self._folder.glob("*.log")))

    def end(self) -> None:
        for process in self._running:
            process.send_signal(signal.SIGCONT)
            # One that still imports would be ended by the signal before it can end in order.
            self.wait_for("it can be told to end", lambda process=process: catches(process, signal.SIGTERM))
            process.terminate()
        for process in self._running:
            assert process.wait(60) == 0, self.logs()


def is_stopped(process: subprocess.Popen[bytes]) -> bool:
    """Whether every thread of the process is stopped by a signal: `T` in /proc."""
    threads = list(Path(f"/proc/{process.pid}/task").iterdir())
    try:
        return {(thread / "stat").read_text().rpartition(")")[2].split()[0] for thread in threads} == {"T"}
    except (FileNotFoundError, ProcessLookupError):  # one ended meanwhile
        return False


def catches(process: subprocess.Popen[bytes], number: int) -> bool:
    """Whether the process has a handler for a signal (proc(5), `SigCgt`), or is gone."""
    if process.poll() is not None:
        return True
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.fixture
def pair(make_site: Callable[[], Any], tmp_path: Path) -> Iterator[Orchestrators]:
    made = Orchestrators(make_site(), tmp_path)
    yield made
    made.end()


def test_one_that_was_paused_past_its_lease_does_nothing_twice(pair: Orchestrators) -> None:
    site = pair.site
    on_sqlite = site.context.database.is_sqlite
    site.publish(1)
    pair.start("api")
    pair.start("bridge")
    # On PostgreSQL it stops inside its transaction, with the lease's lock held: nobody can act in its place, and when
    # it goes on its lease is over. On SQLite its write lock would hold up the bridge as well, so that it is stopped
    # from outside, at whatever it does.
    first = pair.start("orchestrator", pause_after=0 if on_sqlite else 2)
    pair.wait_for("the first's lease", lambda: pair.holder() == first.pid)
    second = pair.start("orchestrator")
    site.wait_for("the API", lambda: site.http.get("/health").status_code == 200)
    rollout = site.ask_for_rollout(1)
    if on_sqlite:
        pair.wait_for("an exposed device", lambda: exposed(site, rollout))
        first.send_signal(signal.SIGSTOP)
    pair.wait_for("the second has begun", lambda: catches(second, signal.SIGTERM))
    pair.wait_for("the first to stand still", lambda: is_stopped(first))
    if on_sqlite and not _locked(site):
        pair.wait_for("the second's lease", lambda: pair.holder() == second.pid, timeout_s=LEASE_S * 10)
    else:
        threading.Event().wait(LEASE_S * 2)  # the lease runs out while nobody can take it
    first.send_signal(signal.SIGCONT)
    site.wait_for("completion", lambda: site.completed(rollout))
    site.check(rollout, 1)


def exposed(site: Any, rollout: str) -> bool:
    with site.context.database.session(read_only=True) as session:
        return session.exec(select(RolloutDevice).where(RolloutDevice.rollout_id == rollout)).first() is not None


def _locked(site: Any) -> bool:
    """Whether the stopped process holds SQLite's write lock."""
    import sqlite3

    path = site.context.settings.url.removeprefix("sqlite:///")
    probe = sqlite3.connect(path, timeout=0.2, isolation_level=None)
    try:
        probe.execute("BEGIN IMMEDIATE")
        probe.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return True
    finally:
        probe.close()
    return False


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pauses_at_any_moment_leave_one_that_acts(pair: Orchestrators) -> None:
    """Both are stopped in turn, for longer than a lease, in the midst of rollout after rollout."""
    site = pair.site
    pair.start("api")
    pair.start("bridge")
    both = [pair.start("orchestrator"), pair.start("orchestrator")]
    site.wait_for("the API", lambda: site.http.get("/health").status_code == 200)
    for process in both:
        pair.wait_for("it has begun", lambda process=process: catches(process, signal.SIGTERM))
    pair.wait_for("a lease", lambda: pair.holder() in [process.pid for process in both])
    for version in range(1, PAUSES + 1):
        site.publish(1)
        rollout = site.ask_for_rollout(version)
        pair.wait_for("an exposed device", lambda rollout=rollout: exposed(site, rollout))
        pid = pair.holder()
        holder = next(process for process in both if process.pid == pid)
        other = next(process for process in both if process is not holder)
        os.kill(holder.pid, signal.SIGSTOP)
        pair.wait_for("the holder to stand still", lambda holder=holder: is_stopped(holder))
        if not site.context.database.is_sqlite or not _locked(site):
            pair.wait_for("the other's turn", lambda other=other: _moved_on(pair, other.pid), LEASE_S * 10)
        os.kill(holder.pid, signal.SIGCONT)
        site.wait_for("completion", lambda rollout=rollout: site.completed(rollout))
        site.check(rollout, version)


def _moved_on(pair: Orchestrators, pid: int) -> bool:
    """Whether the other has the lease, or the stopped one holds the lock on it so that nobody can have it."""
    if pair.holder() == pid:
        return True
    if pair.site.context.database.is_sqlite:
        return False
    with pair.site.context.database.session(read_only=True) as session:
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        return bool(session.connection().exec_driver_sql(locks).scalar())
