"""What the steps share: folders, ports, the devices, and how commands are run and shown."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from demo.narrator import DemoError, Narrator
from demo.processes import Processes

MODEL = "digits"
CHANNEL = "lab"
GROUP = "rooms"
COMMAND_TIMEOUT_S = 170


@dataclass(frozen=True)
class Device:
    """One simulated device."""

    name: str
    profile: str
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def free_ports(number: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@dataclass
class World:
    """One demo's surroundings."""

    root: Path
    """The repository."""
    folder: Path
    """Everything that the demo writes."""
    narrator: Narrator
    ports: list[int] = field(default_factory=lambda: free_ports(5))
    found: dict[str, Any] = field(default_factory=dict)
    """What later steps need of earlier ones."""

    @cached_property
    def processes(self) -> Processes:
        return Processes(self.folder, self.folder / "logs")

    @cached_property
    def devices(self) -> list[Device]:
        return [
            Device("kitchen-pi4", "raspberry-pi-4-64", self.ports[2]),
            Device("porch-pi5", "raspberry-pi-5", self.ports[3]),
            Device("office-pc", "x86-64-vnni", self.ports[4]),
        ]

    @property
    def server_url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def config(self) -> Path:
        return self.root / "examples" / "digits" / "digits.toml"

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "base"

    @cached_property
    def env(self) -> dict[str, str]:
        """Environment of every command and process."""
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": str(self.narrator.console.width),
            "EDGEWISE_CONFIG": str(self.folder / "edgewise.toml"),
            "EDGEWISE_SERVER_HTTP_PORT": str(self.ports[0]),
            "EDGEWISE_SERVER_BROKER_PORT": str(self.ports[1]),
        }

    def edgewise(self, *arguments: object, expect: int = 0, show: bool = True) -> dict[str, Any]:
        """Run `edgewise ... --json`, shown as a user would type it, and return its document.

        Raises:
            DemoError: its exit status is not the expected one.
        """
        status, out, err = self._run("edgewise", [str(a) for a in arguments] + ["--json"], hide=1, show=show)
        if status != expect:
            raise DemoError(f"edgewise ended with status {status}, not {expect}: {_told(out) or err.strip()}")
        return _document(out)

    def shown(self, program: str, *arguments: object, expect: int = 0) -> str:
        """Run a command and show its output as it stands.

        Raises:
            DemoError: its exit status is not the expected one.
        """
        status, out, err = self._run(program, [str(a) for a in arguments])
        self.narrator.output(out)
        if status != expect:
            raise DemoError(f"{program} ended with status {status}, not {expect}: {err.strip()[-2000:]}")
        return out

    def start(self, name: str, *command: object, env: dict[str, str] | None = None) -> None:
        """Start a process in the background."""
        words = [str(c) for c in command]
        self.narrator.command(f"{self._readable(words)} &")
        self.processes.start(name, self._resolved(words), {**self.env, **(env or {})})

    def get(self, path: str, **params: Any) -> Any:
        """A GET of the server's REST interface, for what the driver waits for."""
        headers = {"Authorization": f"Bearer {self.found['token']}"}
        answer = httpx.get(f"{self.server_url}/api/v1{path}", params=params, headers=headers, timeout=20)
        if answer.status_code != 200:
            raise DemoError(f"{path}: status {answer.status_code}: {answer.text[:300]}")
        return answer.json()

    def _run(self, program: str, arguments: list[str], *, hide: int = 0, show: bool = True) -> tuple[int, str, str]:
        # Commands run in the demo's folder, so that they read as a user would type them.
        words = [program, *(a.removeprefix(f"{self.folder}/") for a in arguments)]
        if show:
            self.narrator.command(self._readable(words[: len(words) - hide]))
        self.processes.check()
        try:
            done = subprocess.run(
                self._resolved(words),
                env=self.env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"{program} did not end within {COMMAND_TIMEOUT_S} s") from error
        with (self.folder / "logs" / "commands.log").open("a") as log:
            log.write(f"$ {shlex.join(words)}\n{done.stdout}{done.stderr}-> {done.returncode}\n\n")
        return done.returncode, done.stdout, done.stderr

    def _resolved(self, words: list[str]) -> list[str]:
        return [str(Path(sys.executable).with_name(words[0])), *words[1:]]

    def _readable(self, words: list[str]) -> str:
        text = shlex.join(words)
        return text.replace(f"{self.folder}/", "").replace(f"{self.root}/", "")


def _document(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DemoError(f"the command's output is not JSON: {text[:300]}") from error
    if not isinstance(found, dict):
        raise DemoError("the command's output is not a JSON object")
    return found


def _told(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[-500:]
