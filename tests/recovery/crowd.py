"""The processes of a swarm, as one crowd of devices: enrols them over REST, starts them, asks how they stand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

SWARM = Path(__file__).resolve().parent / "swarm.py"
STOP_S = 120.0


class Worker:
    """One process with many devices."""

    def __init__(self, name: str, folder: Path, env: dict[str, str], config: dict[str, Any]) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(SWARM), json.dumps(config)],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._status: int | None = None

    @property
    def text(self) -> str:
        """What its agents have logged."""
        return self._log.read_text(errors="replace")

    def check(self) -> None:
        """Fail if it ended by itself."""
        if self._status is None and self._process.poll() is not None:
            raise AssertionError(f"{self.name} ended with {self._process.returncode}: {self.text[-3000:]}")

    def call(self, do: str, **arguments: Any) -> dict[str, Any]:
        """One command, to its answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            self._process.wait(STOP_S)
            raise AssertionError(f"{self.name} ended at {do!r}: {self.text[-3000:]}")
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def stop(self) -> int | None:
        """Stop all of its agents in order; the exit status."""
        if self._status is None:
            try:
                broken = self.call("stop")["broken"] if self._process.poll() is None else []
                self._status = 1 if broken else self._process.wait(STOP_S)
            finally:
                if self._process.poll() is None:
                    self._process.kill()
                self._process.communicate()
        return self._status


class Crowd:
    """All devices. `per_process` of them share a process."""

    def __init__(self, fleet: Any, number: int, per_process: int, config: dict[str, Any]) -> None:
        self.names = [f"d-{n:03d}" for n in range(number)]
        self._fleet = fleet
        env = {name: value for name, value in fleet.env.items() if name != "EDGEWISE_TOKEN"}
        parts = [self.names[at : at + per_process] for at in range(0, number, per_process)]
        self._parts = [(Worker(f"swarm-{n}", fleet.folder, env, config), names) for n, names in enumerate(parts)]

    @property
    def workers(self) -> list[Worker]:
        return [worker for worker, _ in self._parts]

    def state(self, name: str) -> Path:
        """The state folder of a device."""
        folder: Path = self._fleet.folder / "devices" / name
        return folder

    def enrol(self, board: str, group: str) -> None:
        """Enrolment files from the server, keys and requests from the devices, side by side."""
        folder = self._fleet.folder / "enrolments"
        folder.mkdir()
        server = f"{self._fleet.env['EDGEWISE_SERVER']}/api/v1"
        who = {"Authorization": f"Bearer {self._fleet.env['EDGEWISE_TOKEN']}"}

        def order(name: str) -> str:
            body = {"channel": self._fleet.channel, "groups": [group], "name": name, "expires_in_s": 3600}
            answer = httpx.post(f"{server}/enrolments", json=body, headers=who, timeout=60)
            answer.raise_for_status()
            path: Path = folder / f"{name}.json"
            path.write_bytes(answer.content)
            return str(path)

        with ThreadPoolExecutor(8) as pool:
            files = dict(zip(self.names, pool.map(order, self.names), strict=True))
        devices = str(self._fleet.folder / "devices")
        self.each(
            lambda worker, names: worker.call(
                "enrol", devices={n: files[n] for n in names}, board=board, folder=devices
            )
        )

    def each(self, act: Callable[[Worker, list[str]], Any]) -> list[Any]:
        """Do something with every process, side by side."""
        with ThreadPoolExecutor(len(self._parts)) as pool:
            return list(pool.map(lambda part: act(*part), self._parts))

    def all(self, do: str, **arguments: Any) -> list[dict[str, Any]]:
        """The same command to every process."""
        return self.each(lambda worker, _: worker.call(do, **arguments))

    def look(self) -> dict[str, dict[str, Any]]:
        """How every device stands."""
        return {name: stands for found in self.all("look") for name, stands in found["devices"].items()}

    def hand(self, name: str, payload: bytes) -> None:
        """What the broker would deliver to a device as its assignment."""
        self._worker(name).call("hand", device=name, payload=payload.hex())

    def sleep(self, name: str) -> None:
        """Switch a device off."""
        self._worker(name).call("sleep", device=name)

    def wake(self, name: str) -> None:
        """Switch it on again."""
        self._worker(name).call("wake", device=name)

    def _worker(self, name: str) -> Worker:
        return next(worker for worker, names in self._parts if name in names)

    def wait_for(
        self, what: str, good: Callable[[dict[str, Any]], bool], timeout_s: float, but: tuple[str, ...] = ()
    ) -> None:
        """Wait until all devices, `but` some, stand as they should; the error names some that do not."""

        left: list[str] = []

        def others() -> bool:
            left[:] = [name for name, stands in self.look().items() if name not in but and not good(stands)]
            return not left

        try:
            self._fleet.wait_for(what, others, timeout_s, 0.5)
        except AssertionError as error:
            found = self.look()
            shown = {name: found[name] for name in left[:2]}
            raise AssertionError(f"{error}; {len(left)} are missing, as {json.dumps(shown, indent=1)}") from error


def seconds(times: Iterable[float], since: float) -> str:
    """First, median and last, seconds after a time."""
    found = sorted(time - since for time in times)
    return f"first {found[0]:.1f}, median {found[len(found) // 2]:.1f}, last {found[-1]:.1f} s"
