"""Which agent starts next, as a transition table, and the file that remembers it. The standard library alone.

    steady ──Switch──► trial ──Confirm──► steady
                         └──TimedOut, too many starts──► steady, in the slot before

The running agent writes `Switch`, `Confirm` and `Vacate`; the launcher writes the others, only while no
agent runs. So the file has one writer at a time. `base` is the installation that the launcher itself is
of; it is never on trial, since there is nothing behind it. What holds in every state:

L1. A slot runs without end only after the agent in it confirmed itself.
L2. A slot on trial is started at most `MAX_TRIALS` times: a crash, a kill or a power cut counts alike.
L3. `fallback` was confirmed before `current` was tried, or is the base.
L4. What was given up is named in `failed`, until the next `Switch` or `Vacate`.

Unknown keys of the file are ignored and missing ones have defaults, so that an older launcher or
agent reads what a newer one wrote.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

LAUNCHER_VERSION: Final = 1
RESTART: Final = 75
"""Exit status of an agent that asks to be started again, in whatever slot is current then (EX_TEMPFAIL)."""
BASE: Final = "base"
SLOTS: Final = ("a", "b")
MAX_TRIALS: Final = 3
MAX_QUICK_DEATHS: Final = 10
"""Of a confirmed agent, one after the other, each within `SETTLED_S` of its start."""
SETTLED_S: Final = 60.0
_MAX_BYTES: Final = 64 * 1024
_MAX_TEXT: Final = 500


@dataclass(frozen=True)
class Boot:
    """`boot.json`. `sha256` is of the bundle in `current`, empty for the base."""

    format: int = 1
    state: str = "steady"
    current: str = BASE
    sha256: str = ""
    fallback: str = BASE
    fallback_sha256: str = ""
    boots: int = 0
    """On trial: starts so far. Steady: quick deaths in a row."""
    confirm_within_s: float = 300.0
    """A slot on trial must confirm itself this long after each start."""
    failed: str = ""
    """SHA-256 of the bundle that was given up."""
    code: str = ""
    text: str = ""


@dataclass(frozen=True)
class Switch:
    """Run `slot` from the next start on. `trial` unless the slot was confirmed before."""

    slot: str
    sha256: str
    trial: bool
    confirm_within_s: float = 300.0


@dataclass(frozen=True)
class Confirm:
    """The agent in `current` is online and serves."""


@dataclass(frozen=True)
class Vacate:
    """A slot is about to be written over: nothing may fall back to it. Forgets what failed."""

    slot: str


@dataclass(frozen=True)
class Started:
    """The launcher is about to start `current`."""


@dataclass(frozen=True)
class Died:
    """The agent's process ended. `status` is negative for a signal, as `subprocess` has it."""

    status: int
    ran_s: float


@dataclass(frozen=True)
class TimedOut:
    """The slot on trial did not confirm itself in time; its process is dead."""


Event = Switch | Confirm | Vacate | Started | Died | TimedOut


def step(boot: Boot, event: Event) -> Boot:
    """The next record."""
    return TABLE[boot.state, type(event)](boot, event)


def _ignore(boot: Boot, _event: Event) -> Boot:
    return boot


def _switch(boot: Boot, event: Event) -> Boot:
    if not isinstance(event, Switch):
        return boot
    kept = boot if boot.state == "steady" else replace(boot, current=boot.fallback, sha256=boot.fallback_sha256)
    behind, behind_sha256 = (BASE, "") if kept.current == event.slot else (kept.current, kept.sha256)
    trial = event.trial and event.slot != BASE
    return Boot(
        state="trial" if trial else "steady",
        current=event.slot,
        sha256=event.sha256,
        fallback=behind if trial else BASE,
        fallback_sha256=behind_sha256 if trial else "",
        confirm_within_s=event.confirm_within_s,
    )


def _confirm(boot: Boot, _event: Event) -> Boot:
    return replace(boot, state="steady", boots=0)


def _vacate(boot: Boot, event: Event) -> Boot:
    if not isinstance(event, Vacate):
        return boot
    boot = replace(boot, failed="", code="", text="")
    return replace(boot, fallback=BASE, fallback_sha256="") if boot.fallback == event.slot else boot


def _start_trial(boot: Boot, _event: Event) -> Boot:
    if boot.boots < MAX_TRIALS:
        return replace(boot, boots=boot.boots + 1)
    return give_up(boot, "agent-boot-loop", f"it ended {boot.boots} times before it was confirmed; {boot.text}")


def _die_on_trial(boot: Boot, event: Event) -> Boot:
    return replace(boot, text=f"the last time it {death(event.status)}") if isinstance(event, Died) else boot


def _time_out(boot: Boot, _event: Event) -> Boot:
    text = f"it was not online and serving within {boot.confirm_within_s:g} s of its start"
    return give_up(boot, "agent-not-confirmed", text)


def _die_steady(boot: Boot, event: Event) -> Boot:
    if not isinstance(event, Died) or boot.current == BASE:
        return boot
    if event.status in (0, RESTART) or event.ran_s >= SETTLED_S:
        return replace(boot, boots=0)
    if boot.boots + 1 < MAX_QUICK_DEATHS:
        return replace(boot, boots=boot.boots + 1)
    return give_up(boot, "agent-boot-loop", f"it ended {MAX_QUICK_DEATHS} times in a row; it {death(event.status)}")


def give_up(boot: Boot, code: str, text: str) -> Boot:
    """Back to the slot before, for good."""
    return Boot(
        current=boot.fallback, sha256=boot.fallback_sha256, failed=boot.sha256, code=code, text=text[:_MAX_TEXT]
    )


def death(status: int) -> str:
    """How a process ended, in words."""
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


Row = Callable[[Boot, Event], Boot]
TABLE: Final[dict[tuple[str, type], Row]] = {
    ("steady", Switch): _switch,
    ("steady", Confirm): _ignore,
    ("steady", Vacate): _vacate,
    ("steady", Started): _ignore,
    ("steady", Died): _die_steady,
    ("steady", TimedOut): _ignore,
    ("trial", Switch): _switch,
    ("trial", Confirm): _confirm,
    ("trial", Vacate): _vacate,
    ("trial", Started): _start_trial,
    ("trial", Died): _die_on_trial,
    ("trial", TimedOut): _time_out,
}


# -- the file ----------------------------------------------------------------------------------


def folder_of(state: Path) -> Path:
    """Where the launcher's file and the slots are, in a device's state folder."""
    return state / "agent"


def site_of(state: Path, slot: str) -> Path:
    """The folder of a slot's packages."""
    return folder_of(state) / "slots" / slot / "site"


def load(state: Path) -> Boot:
    """Read the record; a missing or damaged one means the base, which can always run."""
    try:
        with (folder_of(state) / "boot.json").open("rb") as file:
            found = json.loads(file.read(_MAX_BYTES))
        known = {name: type(value) for name, value in asdict(Boot()).items()}
        values = {name: known[name](value) for name, value in found.items() if name in known}
        boot = Boot(**values)
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return Boot()
    slots = (BASE, *SLOTS)
    whole = boot.state in ("steady", "trial") and boot.current in slots and boot.fallback in slots
    return boot if whole and boot.format == 1 and boot.confirm_within_s > 0 else Boot()


def save(state: Path, boot: Boot) -> None:
    """Replace the record durably; raises `OSError`."""
    folder = folder_of(state)
    folder.mkdir(mode=0o700, exist_ok=True)
    fd, temp = tempfile.mkstemp(dir=folder, prefix=".boot.")
    try:
        with os.fdopen(fd, "w") as file:
            json.dump(asdict(boot), file)
            file.flush()
            os.fsync(file.fileno())
        Path(temp).replace(folder / "boot.json")
    except OSError:
        Path(temp).unlink(missing_ok=True)
        raise
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
