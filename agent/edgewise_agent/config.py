"""The agent's settings: typed, bounded, each with its unit.

Defaults, then `agent.toml` in the state folder, then `EDGEWISE_AGENT_*` variables
(`EDGEWISE_AGENT_PROBATION__SECONDS=30` for `[probation] seconds`), then flags.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from edgewise_agent.errors import ConfigError

FILE: Final = "agent.toml"
ENV_PREFIX: Final = "EDGEWISE_AGENT_"
_MAX_FILE_BYTES: Final = 64 * 1024

Interval = Annotated[float, Meta(ge=0.05, le=30 * 24 * 3600)]
Mebibytes = Annotated[int, Meta(ge=1, le=1 << 20)]


class ProbationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new model is confirmed after this many good inferences, or this long without a fault."""

    min_inferences: Annotated[int, Meta(ge=1, le=10**9)] = 20
    seconds: Interval = 60.0
    max_boots: Annotated[int, Meta(ge=1, le=100)] = 3
    """Unclean restarts of the agent before the model that served is held to be the cause."""


class SelfTestConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of the self-test's process."""

    timeout_s: Interval = 120.0
    cpu_s: Annotated[int, Meta(ge=1, le=3600)] = 60
    memory_mib: Mebibytes = 2048
    """Private memory that the process may allocate; a guard, not the bundle's budget."""
    nice: Annotated[int, Meta(ge=0, le=19)] = 10


class WatchdogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Longest silence of a part, seconds, before it is held to be stuck: then the service manager hears no more."""

    event_loop_s: Interval = 30.0
    installer_s: Interval = 600.0
    """Hashing a large bundle and loading it into the engine are single steps."""
    others_s: Interval = 180.0
    """Name resolution and a TCP connection are single steps."""


class IdentityConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the device's certificate is renewed."""

    look_s: Interval = 60.0
    """Mean time between two looks at how much of the certificate's life is over."""
    retry_min_s: Interval = 30.0
    """First wait after a renewal that failed, or that did not lead to the broker."""
    retry_max_s: Interval = 6 * 3600.0
    ended_s: Interval = 24 * 3600.0
    """Between two questions of a device that was told that it was revoked or decommissioned."""
    refusals: Annotated[int, Meta(ge=1, le=1_000)] = 2
    """Refusals of the broker in a row after which the device asks for a new certificate."""
    unreachable: Annotated[int, Meta(ge=1, le=100_000)] = 30
    """Failed connections in a row after which the device asks the server where the broker is."""


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A board without an agent that this one stands for; none while `board` is empty."""

    board: Annotated[str, Meta(max_length=64)] = ""
    """Its profile id: the device then is this board, and takes bundles for it alone."""
    machine: Annotated[str, Meta(max_length=32)] = "armv7e-m"
    """Its architecture, as the profile names it."""
    device: Annotated[str, Meta(max_length=255)] = ""
    """Its serial device, e.g. `/dev/ttyACM0`."""
    baud: Annotated[int, Meta(ge=1200, le=4_000_000)] = 115200
    command: Annotated[str, Meta(max_length=1000)] = ""
    """In place of `device`: a command whose standard input and output are the board's line. `{image}` in it is the
    firmware: such a command is an emulator, started anew for each bundle, and its latency does not bind."""
    flash: Annotated[str, Meta(max_length=1000)] = ""
    """The command that writes `{image}` to the board; without it the board must have the firmware already."""
    timeout_s: Interval = 30.0
    """Longest wait for one answer."""
    flash_s: Interval = 300.0
    """Longest time that writing the firmware may take."""
    busy_s: Interval = 60.0
    """Longest wait for the board while a self-test, or another process, has it."""
    attempts: Annotated[int, Meta(ge=1, le=20)] = 3
    """Tries of one request, with growing waits between them."""

    def __post_init__(self) -> None:
        if self.board and bool(self.device) == bool(self.command):
            raise ValueError("gateway needs either device or command")


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    http_host: Annotated[str, Meta(min_length=1, max_length=255)] = "127.0.0.1"
    http_port: Annotated[int, Meta(ge=0, le=65535)] = 8089
    """0 takes any free port."""
    board: Annotated[str, Meta(max_length=64)] = ""
    """Profile id of this board, where the device tree does not name it."""
    engine_threads: Annotated[int, Meta(ge=1, le=256)] = 1
    train_data: str = ""
    """Safetensors with `x` float32 and `y` int64; empty where the device does not take part in federations."""

    telemetry_interval_s: Interval = 60.0
    drift_window_samples: Annotated[int, Meta(ge=1, le=10_000_000)] = 500
    drift_window_s: Interval = 300.0
    """A window is closed at this age even when it is not full."""
    kll: bool = False
    """Send quantile sketches too, where `datasketches` is installed."""
    outbox_max_mib: Mebibytes = 32

    broker_transport: Literal["", "tcp", "websockets"] = ""
    """How the broker is reached; empty: as the enrolment says. `websockets` passes where only port 443 is open."""
    broker_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Port of the broker; 0: as the enrolment says."""
    proxy_url: Annotated[str, Meta(max_length=500)] = ""
    """HTTP proxy for the connection to the broker: `http://[user:password@]host[:port]`."""
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30
    reconnect_min_s: Interval = 1.0
    reconnect_max_s: Interval = 60.0
    fetch_timeout_s: Interval = 20.0
    """Longest silence of the broker while retained messages are awaited."""
    want_attempts: Annotated[int, Meta(ge=1, le=100)] = 4
    want_wait_s: Interval = 5.0
    """Wait for a missing chunk after asking for it; doubles with each attempt."""
    resend_s: Interval = 30.0
    """Messages that the server has not acknowledged are sent again after this long."""
    refresh_interval_s: Interval = 3600.0
    retry_min_s: Interval = 2.0
    """First wait before an assignment whose metadata could not be fetched is looked at again."""
    retry_max_s: Interval = 120.0

    agent_check_s: Interval = 300.0
    """Longest time that a new agent may take to check itself, golden inputs of all models included."""
    agent_confirm_s: Interval = 300.0
    """A new agent must be online and serve this long after its start, or the one before it comes back."""

    min_free_mib: Annotated[int, Meta(ge=0, le=1 << 20)] = 64
    """Free disk space that a download leaves."""
    probation: ProbationConfig = msgspec.field(default_factory=ProbationConfig)
    identity: IdentityConfig = msgspec.field(default_factory=IdentityConfig)
    gateway: GatewayConfig = msgspec.field(default_factory=GatewayConfig)
    self_test: SelfTestConfig = msgspec.field(default_factory=SelfTestConfig)
    watchdog: WatchdogConfig = msgspec.field(default_factory=WatchdogConfig)
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def load_config(state: Path, environ: Mapping[str, str], flags: Mapping[str, Any]) -> AgentConfig:
    """Read the settings. `flags` holds only those that were given.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or out of bounds.
    """
    values = _read_file(state / FILE)
    for name, text in environ.items():
        if name.startswith(ENV_PREFIX):
            _put(values, name.removeprefix(ENV_PREFIX).lower().split("__"), text, name)
    for name, value in flags.items():
        _put(values, name.split("__"), value, name)
    try:
        return msgspec.convert(values, AgentConfig, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the settings are not valid: {error}") from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"{path.name} has {len(data)} bytes; at most {_MAX_FILE_BYTES} are allowed")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is not TOML: {error}") from error


def _put(values: dict[str, Any], keys: list[str], value: Any, source: str) -> None:
    for key in keys[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{source}: {key} is a value, not a section")
        values = inner
    values[keys[-1]] = value
