"""`edgewise worker`: the process that signs for channels that opted in, away from the server."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise_cli.client import Client
from edgewise_cli.errors import UsageError
from edgewise_cli.keys.folder import open_folder
from edgewise_cli.shell import Json, Shell, command
from edgewise_cli.trust.repository import FOLDER, Repository
from edgewise_cli.worker import models
from edgewise_cli.worker.context import WorkerContext
from edgewise_cli.worker.loop import Worker

app = typer.Typer(help="The worker: signs round offers, promotes what federations learned.", no_args_is_help=True)


@command(app, "run")
def run(
    shell: Shell,
    keys: Annotated[Path, typer.Option(help="The worker's key folder, KEYS/worker.", show_default=False)],
    config: Annotated[Path, typer.Option(help="The training configuration of the model.", show_default=False)],
    base_run: Annotated[Path, typer.Option("--run", help="The run that federations start from.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where promoted runs and bundles are kept.")] = Path("promotions"),
    name: Annotated[
        str | None, typer.Option(help="This worker's name. [default: HOST-PID]", show_default=False)
    ] = None,
    poll: Annotated[float, typer.Option(help="Seconds between looks for a job.", min=0.05, max=60)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="End when there is no job.")] = False,
) -> Json:
    """Take jobs from the server until stopped (SIGINT or SIGTERM end it after the job at hand).

    Signs only for channels that the offline keys let opt in, only weights that it fetched and
    measured itself, and only results that passed the gate. Needs a token of the role `worker`.
    """
    loaded = models.load_config(config)
    if not base_run.is_dir():
        raise UsageError(f"{base_run} is no run: give the folder that `edgewise train` made with --run")
    folder = open_folder(keys, "worker")
    models.preload()
    context = WorkerContext(
        client=shell.client,
        keys=folder,
        repository=Repository(shell.client, folder.path / FOLDER, folder.root()),
        config=config,
        run=base_run,
        out=out,
        say=shell.say,
        stage=lambda text: shell.say(f"  {text}"),
    )
    who = name or f"{socket.gethostname()[:40]}-{os.getpid()}"
    worker = Worker(context, who, lambda: Client(shell.connection))

    def stop(*_: Any) -> None:
        worker.stop()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
    shell.say(f"worker {who}: {models.model_of(loaded)}, keys {', '.join(e.role for e in folder.entries)}")
    return {"worker": who, "jobs": worker.run(poll_s=poll, once=once)}


@command(app, "jobs")
def jobs(
    shell: Shell,
    state: Annotated[str | None, typer.Option(help="queued, claimed, finished or failed.")] = None,
    kind: Annotated[str | None, typer.Option(help="sign-offer, promote or retrain.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=1000)] = 50,
) -> Json:
    """List the workers' jobs: what was asked for, who does it, why not."""
    items = shell.client.get("/jobs", state=state, kind=kind, limit=limit)["jobs"]
    shell.table(
        "Jobs",
        ["job", "kind", "state", "worker", "attempts", "error"],
        [
            [str(j["id"]), j["kind"], j["state"], j["worker"] or "-", str(j["attempts"]), j["error"] or ""]
            for j in items
        ],
    )
    return {"jobs": items}
