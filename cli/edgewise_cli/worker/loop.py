"""The worker's loop: claim a job, keep it alive by heartbeats, do it, tell the result.

A job that must not be done is told as failed, with the reason, and the loop goes on. What
nobody foresaw is told too, and ends the worker: its supervisor starts it again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from edgewise_cli.client import Client, segment
from edgewise_cli.errors import CliError, RefusedError, UnreachableError
from edgewise_cli.worker.context import Job, Result, WorkerContext
from edgewise_cli.worker.promotion import promote
from edgewise_cli.worker.signing import sign_offer

HEARTBEAT_S: Final = 15.0
MAX_PAUSE_S: Final = 30.0
_MAX_ERROR_CHARS: Final = 1500

Handler = Callable[[WorkerContext, Job], Result]
HANDLERS: Final[Mapping[str, Handler]] = {"sign-offer": sign_offer, "promote": promote}


class Worker:
    """One worker process.

    Args:
        context: what the jobs need.
        name: how the server knows this worker; unique among the workers.
        beat_client: makes the client of the heartbeat's own thread.
        handlers: what is done for each kind of job.
    """

    def __init__(
        self,
        context: WorkerContext,
        name: str,
        beat_client: Callable[[], Client],
        handlers: Mapping[str, Handler] = HANDLERS,
    ) -> None:
        self._context = context
        self._name = name
        self._beat_client = beat_client
        self._handlers = handlers
        self._stop = threading.Event()

    def stop(self) -> None:
        """End after the current job. Safe in a signal handler."""
        self._stop.set()

    def run(self, *, poll_s: float, once: bool = False) -> int:
        """Work until stopped; with `once` until there is no job. Returns the jobs done."""
        done = 0
        pause = poll_s
        while not self._stop.is_set():
            try:
                job = self._context.client.post("/jobs/claim", {"worker": self._name, "kinds": sorted(self._handlers)})
                pause = poll_s
            except UnreachableError as error:
                # The server restarts, or the network is away: wait longer each time.
                if once:
                    raise
                self._context.say(str(error))
                pause = min(MAX_PAUSE_S, 2 * pause)
                job = None
            if job is not None:
                self._do(job)
                done += 1
            elif once:
                break
            else:
                self._stop.wait(pause)
        return done

    def _do(self, job: Job) -> None:
        handler = self._handlers.get(str(job["kind"]))
        path = f"/jobs/{segment(str(job['id']))}"
        try:
            if handler is None:
                raise RefusedError(f"this worker does no {job['kind']!r}")
            self._context.say(f"job {job['id']}: {job['kind']}")
            with self._beating(path):
                result = handler(self._context, job)
            self._context.client.post(f"{path}/finish", {"worker": self._name, "result": result})
        except CliError as error:
            self._context.say(f"job {job['id']} failed: {error}")
            self._fail(path, f"{error.code}: {error}")
        except Exception as error:
            self._fail(path, f"internal: {type(error).__name__}: {error}")
            raise

    def _fail(self, path: str, text: str) -> None:
        try:
            self._context.client.post(f"{path}/fail", {"worker": self._name, "error": text[:_MAX_ERROR_CHARS]})
        except CliError as error:
            # The job is another worker's by now, or the server is away and will queue it again.
            self._context.say(f"could not tell the failure: {error}")

    @contextmanager
    def _beating(self, path: str) -> Iterator[None]:
        ended = threading.Event()

        def beat() -> None:
            client = self._beat_client()
            try:
                while not ended.wait(HEARTBEAT_S):
                    try:
                        client.post(f"{path}/heartbeat", {"worker": self._name})
                    except CliError as error:
                        self._context.say(f"heartbeat: {error}")
            finally:
                client.close()

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=5)
