"""`edgewise-agent-launcher`: runs the current agent, and goes back when a new one does not confirm itself.

The standard library and `selfupdate.boot` alone: no update of the agent replaces what decides whether an
update holds. `edgewise-agent-launcher run --state DIR ...` watches over `edgewise-agent run --state DIR ...`; any other
subcommand is run by the current agent's code, so that it reads the state that this agent wrote.

Exit status: that of the agent, 128 + N after signal N.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from edgewise_agent.selfupdate import boot as boots
from edgewise_agent.selfupdate.boot import Boot

VERSION_VARIABLE: Final = "EDGEWISE_LAUNCHER"
SLOT_VARIABLE: Final = "EDGEWISE_SLOT"
_LOOK_S: Final = 0.25
_AGAIN_S: Final = 1.0
_TERM_S: Final = 20.0
_PR_SET_PDEATHSIG: Final = 1


class Launcher:
    """Args:
    state: the device's state folder.
    arguments: of the agent.
    """

    def __init__(self, state: Path, arguments: Sequence[str]) -> None:
        self._state = state
        self._arguments = list(arguments)
        self._stopping = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Run agents until one ends by itself or the launcher is told to stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        while True:
            boot = self._move(self._whole(boots.load(self._state)), boots.Started())
            began = time.monotonic()
            self._child = subprocess.Popen(
                command(self._arguments), env=environment(self._state, boot.current), preexec_fn=_die_with_parent
            )
            if self._stopping.is_set():
                self._child.terminate()
            status = self._await(self._child, boot, began)
            after = boots.load(self._state)
            if status is None:
                after = self._move(after, boots.TimedOut())
            else:
                after = self._move(after, boots.Died(status, time.monotonic() - began))
            if self._stopping.is_set() or status == 0:
                return 0
            if status == boots.RESTART and after != boot:
                continue
            _say(f"the agent in slot {boot.current} {'hung' if status is None else boots.death(status)}")
            if status is not None and after.state == "steady" and after.current == boot.current:
                return 128 - status if status < 0 else status
            self._stopping.wait(_AGAIN_S)
            if self._stopping.is_set():
                return 0

    def _await(self, child: subprocess.Popen[bytes], boot: Boot, began: float) -> int | None:
        """The exit status, or None if the slot on trial did not confirm itself in time and was killed."""
        deadline = began + boot.confirm_within_s if boot.state == "trial" else float("inf")
        while True:
            try:
                return child.wait(None if deadline == float("inf") else _LOOK_S)
            except subprocess.TimeoutExpired:
                if boots.load(self._state).state != "trial":
                    deadline = float("inf")
                elif time.monotonic() >= deadline and not self._stopping.is_set():
                    _end(child)
                    return None

    def _whole(self, boot: Boot) -> Boot:
        """A slot whose folder is gone cannot be started."""
        if boot.current == boots.BASE or boots.site_of(self._state, boot.current).is_dir():
            return boot
        return self._keep(boot, boots.give_up(boot, "agent-slot-damaged", "its folder is missing"))

    def _move(self, boot: Boot, event: boots.Event) -> Boot:
        return self._keep(boot, boots.step(boot, event))

    def _keep(self, before: Boot, after: Boot) -> Boot:
        if after == before:
            return after
        if after.failed and after.failed != before.failed:
            _say(f"the agent {after.failed[:12]} is given up: {after.code}: {after.text}")
        try:
            boots.save(self._state, after)
        except OSError as error:
            _say(f"boot.json cannot be written: {error.strerror or error}")
            # A trial that cannot be counted could go on for ever: what was confirmed runs meanwhile.
            return boots.give_up(after, after.code, after.text) if after.state == "trial" else after
        return after

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._stopping.set()
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)


def command(arguments: Sequence[str]) -> list[str]:
    """The agent's command line, by the Python of the base installation."""
    return [sys.executable, "-P", "-m", "edgewise_agent", *arguments]


def environment(state: Path, slot: str) -> dict[str, str]:
    """The agent's environment: a slot's packages come before those of the base installation."""
    env = {name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"}
    env |= {VERSION_VARIABLE: str(boots.LAUNCHER_VERSION), SLOT_VARIABLE: slot}
    if slot != boots.BASE:
        paths = [str(boots.site_of(state, slot)), env.get("PYTHONPATH", "")]
        env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return env


def _die_with_parent() -> None:
    """An agent without a launcher would keep the next one from starting: it ends with its launcher."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_TERM_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _say(text: str) -> None:
    print(f"edgewise-agent-launcher: {text}", file=sys.stderr, flush=True)


def state_of(arguments: Sequence[str]) -> Path | None:
    """The folder that `--state` names."""
    for at, word in enumerate(arguments):
        if word.startswith("--state="):
            return Path(word.partition("=")[2]).absolute()
        if word == "--state" and at + 1 < len(arguments):
            return Path(arguments[at + 1]).absolute()
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status of `run`, and not at all from what it replaces itself by."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    state = state_of(given)
    if given[:1] == ["run"] and state is not None and state.is_dir():
        return Launcher(state, given).run()
    slot = boots.BASE if state is None else boots.load(state).current
    words = command(given)
    return os.execve(words[0], words, environment(state or Path(), slot))  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
