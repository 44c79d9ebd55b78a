"""Many real agents in one process: `python swarm.py OPTIONS`, JSON lines in and out.

Each device is `edgewise_agent.app.Agent` with a state folder, a key and a certificate of its own: its session over
mutual TLS, its metadata, store, installer, outbox, keeper of the identity and HTTP endpoint, with all their threads.
One thing differs from a board: the self-test runs the same `examine` inside this process, one at a time, where a board
starts a child for it, because hundreds of children would measure this machine and not the fleet.

Commands, one object a line, each answered by one line:

    {"do": "enrol", "devices": {ID: FILE}, "board": ..., "folder": ...}
    {"do": "start"}                 connect all
    {"do": "probe", ...}            ask every device over HTTP, again and again, from now on
    {"do": "goal", ...}             what a device must reach from now on; `look` tells when it did
    {"do": "hand", "device": ID, "payload": HEX}   what the broker would deliver as its assignment
    {"do": "sleep", "device": ID}   switch a device off, in order
    {"do": "wake", "device": ID}    and on again, with the state that it has
    {"do": "look"}                  how every device stands
    {"do": "stop"}
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from edgewise_agent import log
from edgewise_agent.app import Agent
from edgewise_agent.config import AgentConfig
from edgewise_agent.engines import installed
from edgewise_agent.identity.enrol import enrol
from edgewise_agent.identity.facts import detect
from edgewise_agent.install.self_test import SelfTester
from edgewise_agent.install.self_test_child import Verdict, examine
from edgewise_protocol.structs import prepare_structs

LINE_BYTES = 4 << 20
LOOK_S = 0.25
AT_ONCE = 16
ANSWER_S = 30.0
_one_at_a_time = threading.Lock()


def _examine_inside(tester: SelfTester, arguments: list[str], _interrupted: Any, _timeout_s: float) -> Verdict:
    with _one_at_a_time:
        try:
            return examine(Path(arguments[0]), tester.threads)
        except Exception as error:
            return Verdict(code=getattr(error, "code", "") or "self-test", text=str(error)[:1500])


@dataclass(frozen=True)
class Goal:
    """When a device is healthy: by which keys, which certificate, which version."""

    model: str
    version: int
    intermediate: str
    timestamp_key: str
    snapshot_key: str


@dataclass
class Reached:
    """Wall clock, seconds since the epoch; 0: not yet."""

    renewed: float = 0.0
    metadata: float = 0.0
    committed: float = 0.0
    answered: float = 0.0


@dataclass
class Asked:
    """What the local clients of a device saw."""

    answered: int = 0
    failed: int = 0
    last: int = 0
    """The version that answered last."""
    errors: list[str] = field(default_factory=list)


class Device:
    """One agent, and a client that asks it."""

    def __init__(self, name: str, state: Path, config: AgentConfig) -> None:
        self.name, self.state, self._config = name, state, config
        self.agent = Agent(state, config)
        self.asleep, self._asking = False, asyncio.Lock()
        self.asked, self.reached = Asked(), Reached()
        self._keys: dict[str, tuple[int, str]] = {}

    async def sleep(self) -> None:
        """Switch it off; its local clients know."""
        self.asleep = True
        async with self._asking:
            await self.agent.stop()

    async def wake(self) -> None:
        """Another agent over the same state folder."""
        self.agent = Agent(self.state, self._config)
        await self.agent.start()
        self.asleep = False

    def key_of(self, role: str) -> str:
        """The key that signed the metadata that this device trusts; empty before there are any."""
        path = self.state / "metadata" / f"{role}.json"
        try:
            changed = path.stat().st_mtime_ns
            if self._keys.get(role, (0, ""))[0] != changed:
                self._keys[role] = (changed, json.loads(path.read_bytes())["signatures"][0]["keyid"])
        except FileNotFoundError:
            return ""
        return self._keys[role][1]

    def compare(self, goal: Goal, now: float) -> None:
        """Note what is reached by now."""
        if self.asleep:
            return
        reached, agent = self.reached, self.agent
        model = agent.installer.state.models.get(goal.model)
        signed = (self.key_of("timestamp"), self.key_of("snapshot")) == (goal.timestamp_key, goal.snapshot_key)
        active = model.active.version if model is not None and model.active else 0
        found = {
            "renewed": agent.session.online and agent.keeper.identity.validity.intermediate_sha256 == goal.intermediate,
            "metadata": signed,
            "committed": model is not None and model.state == "committed" and active == goal.version,
            "answered": self.asked.last == goal.version,
        }
        for name, there in found.items():
            if there and not getattr(reached, name):
                setattr(reached, name, now)

    def stands(self) -> dict[str, Any]:
        """All that the drill looks at, as JSON."""
        state, validity = self.agent.installer.state, self.agent.keeper.identity.validity
        return {
            "online": self.agent.session.online,
            "last_error": self.agent.session.last_error,
            "serial": validity.serial,
            "intermediate": validity.intermediate_sha256,
            "identity": self.agent.keeper.standing.code,
            "assignment_version": state.assignment_version,
            "error_code": state.error_code,
            "error": state.error[:300],
            "models": {
                name: {"state": model.state, "version": model.active.version if model.active else 0}
                for name, model in state.models.items()
            },
            "timestamp_key": self.key_of("timestamp"),
            "asked": asdict(self.asked),
            "reached": asdict(self.reached),
        }

    async def ask(self, model: str, body: bytes, answers: dict[int, list[float]], pause_s: float) -> None:
        """A local client that never stops; every answer must be that of its version, to the last number."""
        head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: device\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        while True:
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            async with self._asking:
                if self.asleep:
                    continue
                try:
                    async with asyncio.timeout(ANSWER_S):
                        self.asked.last = await self._ask_once(request, answers)
                    self.asked.answered += 1
                except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
                    self.asked.failed += 1
                    self.asked.errors = [*self.asked.errors[-4:], repr(error)]

    async def _ask_once(self, request: bytes, answers: dict[int, list[float]]) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.agent.http.port)
        try:
            return await _answer(reader, writer, request, answers)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, answers: dict[int, list[float]]
) -> int:
    """Version of a good answer; raises `ValueError` for any other."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = next(line.partition(":")[2] for line in head.splitlines() if line.startswith("content-length:"))
    text = await reader.readexactly(int(length))
    if " 200 " not in head.splitlines()[0]:
        raise ValueError(f"{head.splitlines()[0]}: {text[:200]!r}")
    document = json.loads(text)
    version, data = int(document["model_version"]), document["outputs"][0]["data"]
    if any(abs(a - b) > 1e-3 for a, b in zip(answers[version], data, strict=True)):
        raise ValueError(f"version {version} answers {data}, not {answers[version]}")
    return version


class Swarm:
    """The devices of this process. Every method with the name of a command is one."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._states: dict[str, Path] = {}
        self._devices: dict[str, Device] = {}
        self._goal: Goal | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def enrol(self, devices: dict[str, str], board: str, folder: str) -> dict[str, Any]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(name: str, file: str) -> None:
            state = Path(folder) / name
            state.mkdir(parents=True)
            async with gate:
                await asyncio.to_thread(enrol, Path(file), state, detect(state, installed(), board), board)
            self._states[name] = state

        await asyncio.gather(*(one(name, file) for name, file in devices.items()))
        return {"enrolled": len(self._states)}

    async def start(self) -> dict[str, Any]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(name: str, state: Path) -> None:
            async with gate:
                self._devices[name] = device = Device(name, state, self._config)
                await device.agent.start()

        await asyncio.gather(*(one(name, state) for name, state in self._states.items()))
        self._tasks.append(asyncio.create_task(self._watch()))
        return {"started": len(self._devices)}

    async def probe(self, model: str, body: str, answers: dict[str, list[float]], pause_s: float) -> dict[str, Any]:
        expected = {int(version): values for version, values in answers.items()}
        for device in self._devices.values():
            self._tasks.append(asyncio.create_task(device.ask(model, body.encode(), expected, pause_s)))
        return {}

    async def goal(self, **goal: Any) -> dict[str, Any]:
        self._goal = Goal(**goal)
        for device in self._devices.values():
            device.reached = Reached()
        return {}

    async def hand(self, device: str, payload: str) -> dict[str, Any]:
        self._devices[device].agent.installer.hint(bytes.fromhex(payload))
        return {}

    async def sleep(self, device: str) -> dict[str, Any]:
        await self._devices[device].sleep()
        return {}

    async def wake(self, device: str) -> dict[str, Any]:
        await self._devices[device].wake()
        return {}

    async def look(self) -> dict[str, Any]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "devices": {name: device.stands() for name, device in self._devices.items()},
            "cpu_s": used.ru_utime + used.ru_stime,
            "resident_mib": used.ru_maxrss / 1024,
            "threads": threading.active_count(),
        }

    async def stop(self) -> dict[str, Any]:
        for task in self._tasks:
            task.cancel()
        # A client or the watch that ended by a defect of its own must not pass for one that was stopped.
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        broken = [repr(end) for end in ended if not isinstance(end, asyncio.CancelledError)]
        await asyncio.gather(*(device.agent.stop() for device in self._devices.values() if not device.asleep))
        return {"stopped": len(self._devices), "broken": broken}

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if self._goal is not None:
                for device in self._devices.values():
                    device.compare(self._goal, time.time())


async def _serve(swarm: Swarm) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(4 * AT_ONCE))
    reader = asyncio.StreamReader(LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        do = command.pop("do")
        answer = await getattr(swarm, do)(**command)
        print(json.dumps(answer), flush=True)
        if do == "stop":
            return


def main() -> None:
    """Read settings from the first argument, then serve commands until `stop`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    config = msgspec.convert(json.loads(sys.argv[1]), AgentConfig)
    log.set_up(config.log_level)
    SelfTester._child = _examine_inside  # type: ignore[method-assign,assignment]
    prepare_structs()
    threading.stack_size(512 * 1024)
    asyncio.run(_serve(Swarm(config)))


if __name__ == "__main__":
    main()
