"""Guards against an agent that hangs for ever while its service manager believes that it works, and against one
that is restarted although it only waits, or downloads for long."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from edgewise_agent.config import WatchdogConfig
from edgewise_agent.install.events import Stopped
from edgewise_agent.watchdog.liveness import Part, Stall, judge, period
from edgewise_agent.watchdog.notify import Notifier, watchdog_s

WATCHDOG_S = 0.4


class ServiceManager:
    """What systemd does: reads the datagrams of sd_notify."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.messages: list[tuple[float, str]] = []
        self._change = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            data = self._socket.recv(4096)
            with self._change:
                if not data:
                    return
                self.messages += [(time.monotonic(), line) for line in data.decode().splitlines()]
                self._change.notify_all()

    def wait(self, wanted: Callable[[list[tuple[float, str]]], bool], what: str, timeout: float = 20.0) -> None:
        with self._change:
            if not self._change.wait_for(lambda: wanted(self.messages), timeout):
                raise AssertionError(f"waited for {what}; heard {self.messages[-8:]}")

    def heard(self, message: str) -> int:
        with self._change:
            return sum(line == message for _, line in self.messages)

    def last(self, message: str) -> float:
        with self._change:
            return max((at for at, line in self.messages if line == message), default=0.0)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceManager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@edgewise-{time.monotonic_ns()}"
    found = ServiceManager(address)
    yield found
    found.close()


def test_only_silence_beyond_the_limit_is_a_stall() -> None:
    quick, slow = Part("quick", 10), Part("slow", 600)
    assert judge({quick: 95.0, slow: 0.0}, 100.0) == ()
    assert judge({quick: 89.0, slow: 0.0}, 100.0) == (Stall("quick", 11.0),)
    assert [stall.name for stall in judge({quick: 89.0, slow: -600.0}, 100.0)] == ["slow", "quick"]


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({"WATCHDOG_USEC": "-1"}, 0.0),
    ],
)
def test_the_service_managers_time(environ: dict[str, str], seconds: float) -> None:
    assert watchdog_s(environ, 7) == seconds
    assert not seconds or period(seconds) <= seconds / 2


def test_a_manager_that_is_gone_or_of_another_kind_costs_nothing(tmp_path: Path) -> None:
    for address in ("", str(tmp_path / "nobody"), "vsock:2:1234"):
        Notifier(address).ready()


def test_the_agent_says_that_it_is_ready_alive_and_stopping(
    manager: ServiceManager, run_agent: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    with run_agent():
        manager.wait(lambda said: any(line == "READY=1" for _, line in said), "READY=1")
        manager.wait(lambda said: sum(line == "WATCHDOG=1" for _, line in said) >= 5, "signs of life")
        manager.wait(lambda said: any("online" in line for _, line in said if line.startswith("STATUS=")), "a status")
        assert manager.heard("STOPPING=1") == 0
    manager.wait(lambda said: any(line == "STOPPING=1" for _, line in said), "STOPPING=1")
    assert manager.heard("STOPPING=1") == 1 and manager.heard("READY=1") == 1


@pytest.mark.parametrize("part", ["installer", pytest.param("pump", marks=pytest.mark.slow), "event loop"])
def test_a_stuck_part_silences_the_watchdog_and_is_named(
    part: str,
    tmp_path: Path,
    voice: Any,
    simulator: Any,
    run_agent: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = ServiceManager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    go_on, stuck = threading.Event(), threading.Event()

    def hang(*_: Any) -> Any:
        stuck.set()
        go_on.wait(60)
        return []

    limits = WatchdogConfig(event_loop_s=3.0, installer_s=3.0, others_s=8.0)
    with run_agent(watchdog=limits) as device:
        manager.wait(lambda said: any(line == "WATCHDOG=1" for _, line in said), "a sign of life")
        try:
            if part == "installer":
                device.agent.installer._parts.worker.store.collect = hang
                device.agent.installer._collect = True
                device.agent.installer.post("nothing", Stopped(at=0.0))
            elif part == "pump":
                monkeypatch.setattr(device.agent.outbox, "pending", hang)
                device.agent._pump.filled()
            else:
                device._loop.call_soon_threadsafe(lambda: stuck.set() or go_on.wait(60))
            assert stuck.wait(20)
            named = f"STATUS=stuck: {part}"
            manager.wait(lambda said: any(line == named for _, line in said), named)
            silent_from = manager.last(named)
            # Silence has no condition to wait for: only time shows it.
            threading.Event().wait(4 * WATCHDOG_S)
            assert manager.last("WATCHDOG=1") <= silent_from
            assert any("stuck" in record.message and record.part == part for record in caplog.records)
        finally:
            go_on.set()
        manager.wait(lambda said: said[-1][1] == "WATCHDOG=1", "a sign of life again")
    manager.close()


@pytest.mark.slow
def test_a_download_that_takes_long_is_progress(
    tmp_path: Path, voice: Any, simulator: Any, run_agent: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = ServiceManager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    file, data = simulator.make_bundle(1)
    voice.release(file, data, retain=False)
    voice.answer_wants = False
    # Nobody publishes the chunks: the installer waits for them far longer than it may be silent.
    with run_agent(watchdog=WatchdogConfig(installer_s=6.0), want_attempts=3, want_wait_s=1.0):
        voice.assign((file,), 1)
        assert voice.wait_model("failed", 1).error_code == "chunk-unavailable"
        assert not any("stuck" in line for _, line in manager.messages)
    manager.close()
