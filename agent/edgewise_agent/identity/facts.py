"""What this machine is, from /proc and the device tree."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

from edgewise_protocol.facts import DeviceFacts

from edgewise_agent.config import GatewayConfig
from edgewise_agent.identity.processor import features_of, machine_of

MIB: Final = 1 << 20
_MAX_FEATURES: Final = 512
_MAX_READ: Final = 256 * 1024


def detect(
    state: Path,
    engines: Mapping[str, str],
    simulated_board: str = "",
    board: str = "",
    root: Path = Path("/"),
    gateway: GatewayConfig | None = None,
) -> DeviceFacts:
    """Collect the facts.

    Args:
        state: the state folder, whose disk counts.
        engines: installed engines and their versions.
        simulated_board: profile id that this machine stands in for, or empty.
        board: profile id that the operator configured, or empty.
        root: where `proc` and `etc` are.
        gateway: the board that this machine stands for; the device then is that board, on this machine's disk.
    """
    if gateway is not None and gateway.board:
        return DeviceFacts(
            machine=gateway.machine,
            compatible=(gateway.board,),
            storage_free_mib=shutil.disk_usage(state).free // MIB,
            engines=dict(engines),
            os=f"none; gateway: {os_name(root)}"[:100],
            agent_version=metadata.version("edgewise-agent"),
        )
    if simulated_board:
        compatible: tuple[str, ...] = (simulated_board,)
    else:
        # A machine without a device tree, as an x86-64 one, is named after its processor.
        named = (*((board,) if board else ()), *device_tree(root))
        compatible = named or (machine_of(platform.machine()).replace("_", "-"),)
    return DeviceFacts(
        machine=machine_of(platform.machine()),
        compatible=compatible,
        cpu_features=cpu_features(root),
        cpu_count=os.cpu_count() or 1,
        memory_mib=memory_mib(root),
        storage_free_mib=shutil.disk_usage(state).free // MIB,
        engines=dict(engines),
        os=os_name(root),
        agent_version=metadata.version("edgewise-agent"),
        simulated=bool(simulated_board),
    )


def emulated(gateway: GatewayConfig) -> bool:
    """Whether the gateway's board is an emulator, started with each image: its latency says nothing."""
    return bool(gateway.board) and "{image}" in gateway.command


def device_tree(root: Path) -> tuple[str, ...]:
    """The board's `compatible` strings, most specific first; empty where there is no device tree."""
    text = _text(root / "proc/device-tree/compatible")
    return tuple(part for part in text.split("\0") if part)[:32]


def cpu_features(root: Path) -> tuple[str, ...]:
    """Feature names as the kernel spells them (`flags` on x86, `Features` on ARM)."""
    machine = machine_of(platform.machine())
    found = features_of(machine, _text(root / "proc/cpuinfo"), _read(root / "proc/self/auxv"))
    return found[:_MAX_FEATURES]


def memory_mib(root: Path) -> int:
    """Physical memory, MiB; 0 where it is unknown."""
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // 1024
    return 0


def os_name(root: Path) -> str:
    """The distribution's name, or the kernel's."""
    for line in _text(root / "etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')[:100]
    return platform.system()


def _text(path: Path) -> str:
    return _read(path).decode(errors="replace")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_READ)
    except OSError:
        return b""
