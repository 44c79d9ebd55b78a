"""Runs the demo: `scripts/demo [--keep] [--stop]`."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from demo.narrator import DemoError, Narrator
from demo.processes import PIDS, stop_kept
from demo.story import tell
from demo.world import World

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".edgewise"


def main() -> int:
    """Exit status 0 if everything happened, 1 if not, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Edgewise's main job, end to end, on this machine: train, convert, sign, publish, enrol, roll out, "
        "watch, federate. Takes under three minutes after installation on two cores.",
    )
    parser.add_argument("--keep", action="store_true", help="leave the fleet running, and print its URLs")
    parser.add_argument("--stop", action="store_true", help="end the fleets that --keep left running")
    options = parser.parse_args()
    if options.stop:
        return _stop()
    folder = PLACE / f"demo-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    (folder / "logs").mkdir(parents=True)
    return _run(World(ROOT, folder, Narrator()), keep=options.keep)


def _run(world: World, *, keep: bool) -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    narrator = world.narrator
    done = False
    try:
        tell(world)
        done = True
        narrator.summary()
        narrator.say("[bold green]Everything happened.[/]")
        return 0
    except DemoError as error:
        if narrator.verdicts:
            narrator.summary()
        narrator.say(f"[bold red]The demo failed:[/] {error}")
        narrator.say(f"Logs: {world.folder / 'logs'}")
        return 1
    except Exception:
        narrator.say(f"[bold red]The demo itself broke.[/] Logs: {world.folder / 'logs'}")
        raise
    except KeyboardInterrupt:
        narrator.say(f"Interrupted. Logs: {world.folder / 'logs'}")
        return 130
    finally:
        if done and keep:
            _tell_kept(world)
        else:
            # A second Ctrl-C must not leave processes behind.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            world.processes.stop()
            if done:
                shutil.rmtree(world.folder, ignore_errors=True)


def _tell_kept(world: World) -> None:
    narrator = world.narrator
    narrator.say("")
    narrator.say(f"The fleet goes on. Server: {world.server_url}  (admin token: {world.folder / 'server/admin.token'})")
    for device in world.devices:
        narrator.say(f"  {device.name}: {device.url}/v2/models/digits")
    narrator.say(
        f"  export EDGEWISE_SERVER={world.server_url} EDGEWISE_TOKEN=$(cat {world.folder / 'server/admin.token'})"
    )
    narrator.say("  .venv/bin/edgewise status")
    narrator.say("End it with: scripts/demo --stop")


def _stop() -> int:
    ended = 0
    for folder in sorted(PLACE.glob("demo-*")):
        if (folder / PIDS).exists():
            ended += stop_kept(folder)
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
    print(f"ended {ended} process(es)")
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
