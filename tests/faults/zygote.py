"""A process that has everything imported, and forks one agent for each point of failure.

Started with the shim in LD_PRELOAD: `python zygote.py FOLDER`. Reads one JSON object a line,
`{"mode": "kill", "point": 17}` (see `Fault`), and answers each with one: `{"ok": true, ...}` or
`{"ok": false, "why": "..."}`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import mmap
import os
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parent))

from edgewise_agent.install.table import DISK_CODES
from edgewise_agent.store.store import RECORD
from rig import Device, install_rig, warm_up
from scenario import FAULTY, STAGES, START, WANTED, Stage, World, reached
from shim import Mode, Shim

Fault = Mode | Literal["twice"]
"""What happens at a point: of the shim's modes, or a kill with another one in the restart after it."""
_CHILD_S = 90.0
_AGE_S = 600.0
"""How long ago the device was last online."""
_SECOND, _SPREAD = 120, 7919
"""The second kill is within so many operations; a prime spreads it over them."""
_ALL = (*STAGES, WANTED)
_UNFINISHED: dict[Fault, int] = {"count": 0, "kill": 1, "torn": 1, "twice": 2, "full": 12, "once": 2}
"""How many files and folders may be left: a disk that refuses everything refuses their removal too."""


def load_simulator() -> Any:
    path = Path(__file__).resolve().parents[1] / "agent" / "fleet_simulator.py"
    spec = importlib.util.spec_from_file_location("agent_fleet_simulator", path)
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Zygote:
    """Args:
    folder: for the state folders of the agents.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shim = Shim()
        self._world = World(load_simulator())
        warm_up()
        install_rig(self._world.broker, self._shim.disarm)
        self._template, self._state = folder / "template", folder / "state"
        self._cut = folder / "cut"
        self._progress = mmap.mmap(-1, mmap.PAGESIZE)
        self._world.enrol(self._template)
        self._check(self._fork(self._make_template), "the template")

    def _make_template(self) -> None:
        device = self._world.device(self._template)
        # The floor under the clock is written again after a minute: let it be so in every run, or in none.
        device.agent._clock._now = lambda: time.time() - _AGE_S
        device.boot()
        device.online()
        for _ in self._world.run(device, (START,)):
            raise AssertionError("the disk refuses")

    # -- one point -------------------------------------------------------------------------

    def count(self, log: Path) -> dict[str, Any]:
        """Run without a fault; writes the log of operations."""
        self._fresh()

        def work() -> None:
            with log.open("wb") as out:
                self._whole(lambda: self._shim.arm(self._state, "count", 0, out.fileno()))

        self._check(self._fork(work), "the run without a fault")
        self._check(self._fork(lambda: self._restart(self._state, "count", WANTED)), "the restart after it")
        return {"state": str(self._state.resolve())}

    def fail(self, mode: Fault, point: int) -> dict[str, Any]:
        """Let the point fail, restart, and look."""
        self._fresh()
        if mode in ("full", "once"):
            self._check(self._fork(lambda: self._refused(mode, point)), "the agent with a full disk")
            if mode == "full":
                self._check(self._fork(self._start_on_full_disk), "the start on a full disk")
            self._check(self._fork(lambda: self._restart(self._cut, mode, self._stage())), "the restart")
            return {"stage": self._stage().name}
        how: Mode = "torn" if mode == "torn" else "kill"
        killed = self._fork(lambda: self._whole(lambda: self._shim.arm(self._state, how, point)))
        if killed != -signal.SIGKILL:
            self._check(killed, "the agent that was to be killed")
            raise AssertionError("the point was not reached")
        if mode == "twice":
            again = 1 + point * _SPREAD % _SECOND
            killed = self._fork(lambda: self._restart(self._state, mode, self._stage(), again))
            if killed != -signal.SIGKILL:
                # It had less to do than that.
                self._check(killed, "the first restart")
        self._check(self._fork(lambda: self._restart(self._state, mode, self._stage())), "the restart")
        return {"stage": self._stage().name}

    def _fresh(self) -> None:
        for folder in (self._state, self._cut):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._template, self._state, symlinks=True)

    def _stage(self) -> Stage:
        return _ALL[self._progress[0]]

    def _enter(self, stage: Stage) -> None:
        self._progress[0] = _ALL.index(stage)

    def _passed(self, stage: Stage) -> None:
        """The stage's assignment was carried out: none below it may be the newest that the device knows."""
        self._progress[1] = _ALL.index(stage) + 1

    def _whole(self, arm: Callable[[], None]) -> None:
        """Everything, from the start of the process on."""
        self._enter(START)
        self._passed(START)
        arm()
        device = self._world.device(self._state)
        device.boot()
        device.installer._settled_at = 0.0
        device.online()
        for stage in STAGES:
            self._enter(stage)
            for _ in self._world.run(device, (stage,)):
                raise AssertionError("the disk refuses")
            self._passed(stage)

    def _refused(self, mode: Mode, point: int) -> None:
        """Everything, on a disk that refuses; then the disk has space again, and the same agent goes on."""
        self._enter(START)
        self._passed(START)
        self._shim.arm(self._state, mode, point)
        device = self._world.device(self._state)
        device.boot()
        device.installer._settled_at = 0.0
        device.online()
        for stage in STAGES:
            self._enter(stage)
            for _ in self._world.run(device, (stage,), disk=mode == "once"):
                self._expect_service(device, stage)
                told = {device.installer._ledger.reported.error_code, device.model.error_code}
                assert told & DISK_CODES, f"the fleet is not told that the disk is full, but {told}"
                self._shim.heal()
                shutil.copytree(self._state, self._cut, symlinks=True)
            self._expect_service(device, stage)
            if not self._cut.exists():
                self._passed(stage)
            if self._shim.counted >= point and (mode == "once" or self._cut.exists()):
                break
        else:
            if self._shim.counted < point:
                raise AssertionError("the point was not reached")
        if not self._cut.exists():
            self._shim.heal()
            shutil.copytree(self._state, self._cut, symlinks=True)
        self._finish(device, mode)

    # -- what must hold after it -------------------------------------------------------------

    def _start_on_full_disk(self) -> None:
        """A device whose disk is still full serves all the same."""
        self._shim.arm(self._cut, "full", 1)
        device = self._world.device(self._cut)
        device.boot()
        self._expect_service(device, self._stage())

    def _restart(self, state: Path, mode: Fault, stage: Stage, kill_at: int = 0) -> None:
        """The restarted agent serves at once, finishes what it was told, and then what it is told next."""
        self._expect_tidy(state, mode)
        self._shim.arm(state, "kill" if kill_at else "count", kill_at)
        device = self._world.device(state)
        device.boot()
        self._expect_service(device, stage)
        device.online()
        if stage is not WANTED:
            for _ in self._world.run(device, (stage,)):
                raise AssertionError("the disk refuses")
            self._passed(stage)
            self._enter(WANTED)
        self._finish(device, "count")
        assert device.refusals == 0

    def _finish(self, device: Device, mode: Fault) -> None:
        """What the fleet wants in the end is reached."""
        for _ in self._world.run(device, (WANTED,)):
            raise AssertionError("the disk refuses")
        assert reached(WANTED, device.model) and device.infer() == WANTED.ends[1]
        state = device.agent._state
        self._expect_tidy(state, mode)
        assert not (damaged := list(state.rglob("*damaged*"))), f"taken for damaged: {damaged}"
        self._expect_store(device)

    def _expect_service(self, device: Device, stage: Stage) -> None:
        active = {found.model: found for found in device.agent.table.active()}
        version = active[self._world.simulator.MODEL].version
        # The engine of the faulty version is broken on purpose: that it is active is all that can be asked.
        if version != FAULTY:
            version = device.infer()
        assert version in stage.may_serve, f"version {version} serves in the stage {stage.name!r}"
        assert device.installer.state.assignment_version >= self._progress[1], "an assignment was forgotten"
        self._expect_store(device)

    def _expect_store(self, device: Device) -> None:
        signed = {file.sha256: file for file in self._world.files.values()}
        for folder in (device.agent._state / "store" / "bundles").iterdir():
            if not folder.name.startswith(".") and (folder / RECORD).exists():
                bundle = device.agent.store.open(folder.name)
                assert bundle.manifest.version == signed[folder.name].custom.version

    @staticmethod
    def _expect_tidy(state: Path, mode: Fault) -> None:
        hidden = [path for path in state.rglob(".*") if path.name != RECORD]
        tops = [path for path in hidden if not any(parent in hidden for parent in path.parents)]
        tops += (state / "metadata").glob("tmp*")
        assert len(tops) <= _UNFINISHED[mode], f"left unfinished: {[str(path.relative_to(state)) for path in tops]}"

    # -- processes ---------------------------------------------------------------------------

    def _fork(self, work: Callable[[], None]) -> int:
        """Run `work` in a child; returns its status, negative for a signal."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work()
                status = 0
            except BaseException:
                (self._folder / "failure").write_text(traceback.format_exc())
            finally:
                os._exit(status)
        ended = os.pidfd_open(child)
        try:
            if not select.select([ended], [], [], _CHILD_S)[0]:
                os.kill(child, signal.SIGABRT)
        finally:
            os.close(ended)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _check(self, status: int, what: str) -> None:
        if status == 1:
            raise AssertionError(f"{what} failed: {(self._folder / 'failure').read_text()}")
        if status:
            raise AssertionError(f"{what} ended with {status}")


def main(folder: Path) -> None:
    logging.disable(logging.CRITICAL)
    zygote = Zygote(folder)
    print(json.dumps({"ok": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked["mode"] == "count":
                answer = zygote.count(Path(asked["log"]))
            else:
                answer = zygote.fail(asked["mode"], asked["point"])
            print(json.dumps({"ok": True, **answer}), flush=True)
        except AssertionError as error:
            print(json.dumps({"ok": False, "why": str(error)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
