"""The machine: its board, the engines, the agent's own version, and what waits to be sent."""

from __future__ import annotations

import platform
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Final

from edgewise_agent.doctor.check import Check, fail, ok, warn
from edgewise_agent.engines import installed
from edgewise_agent.identity.facts import device_tree
from edgewise_agent.identity.processor import machine_of

_DISTRIBUTIONS: Final = ("numpy", "cryptography", "paho-mqtt", "tuf", "msgspec", "safetensors")


@dataclass(frozen=True)
class Machine:
    agent_version: str
    python: str
    machine: str
    compatible: tuple[str, ...]
    simulated_board: str
    board: str
    engines: Mapping[str, str]
    needed: frozenset[str]
    """Engines that the assigned models need."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Version of each package that the agent needs; empty where it is missing."""


@dataclass(frozen=True)
class Waiting:
    """The outbox."""

    messages: int = 0
    size: int = 0
    dropped: int = 0
    problem: str = ""


def look(needed: frozenset[str], simulated_board: str, board: str) -> Machine:
    packages: dict[str, str] = {}
    for name in _DISTRIBUTIONS:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = ""
    return Machine(
        agent_version=metadata.version("edgewise-agent"),
        python=platform.python_version(),
        machine=machine_of(platform.machine()),
        compatible=device_tree(Path("/")),
        simulated_board=simulated_board,
        board=board,
        engines=installed(),
        needed=needed,
        packages=packages,
    )


def judge(machine: Machine) -> tuple[Check, ...]:
    """Pure."""
    missing = sorted(name for name, version in machine.packages.items() if not version)
    checks = [ok("version", f"agent {machine.agent_version}, Python {machine.python}")]
    if missing:
        mend = "install the agent again: `pip install --force-reinstall edgewise-agent`"
        checks.append(fail("packages", f"missing: {', '.join(missing)}", mend))
    else:
        checks.append(ok("packages", ", ".join(f"{name} {version}" for name, version in machine.packages.items())))
    checks.append(_engines(machine))
    if machine.simulated_board:
        checks.append(ok("board", f"stands in for {machine.simulated_board}; its measurements are not a board's"))
    elif machine.board or machine.compatible:
        checks.append(ok("board", ", ".join(filter(None, (machine.board, *machine.compatible)))[:200]))
    else:
        checks.append(ok("board", f"no device tree: the board is named after its processor, {machine.machine}"))
    return tuple(checks)


def _engines(machine: Machine) -> Check:
    have = ", ".join(f"{name} {version}" for name, version in machine.engines.items())
    absent = sorted(machine.needed - machine.engines.keys())
    if absent:
        return fail(
            "engines", f"the models need {', '.join(absent)}; installed: {have or 'none'}", code="engine-missing"
        )
    if not machine.engines:
        return fail("engines", "no inference engine is installed", code="engine-missing")
    return ok("engines", have)


def look_at_outbox(path: Path) -> Waiting:
    """Count what waits; opens the file to read only, beside a running agent too."""
    if not path.exists():
        return Waiting()
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
        try:
            (tables,) = db.execute("SELECT COUNT(*) FROM sqlite_master WHERE name IN ('message', 'about')").fetchone()
            if tables < 2:
                return Waiting()  # the agent is about to make them
            count, size = db.execute("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM message").fetchone()
            row = db.execute("SELECT value FROM about WHERE name = 'dropped'").fetchone()
        finally:
            db.close()
        return Waiting(int(count), int(size), int(row[0]) if row else 0)
    except (sqlite3.Error, ValueError) as error:
        return Waiting(problem=str(error))


def judge_outbox(waiting: Waiting, max_mib: int) -> Check:
    """Pure."""
    if waiting.problem:
        return fail(
            "outbox", f"it cannot be read: {waiting.problem}", "start the agent: it sets a damaged one aside", "outbox"
        )
    text = f"{waiting.messages} messages wait ({waiting.size // 1024} KiB)"
    if waiting.dropped:
        text += f"; {waiting.dropped} were given up since it began"
    if waiting.size > max_mib * (1 << 20) * 0.9:
        return warn("outbox", f"{text}: it is full", "see whether the broker can be reached, and the server stores")
    return ok("outbox", text)
