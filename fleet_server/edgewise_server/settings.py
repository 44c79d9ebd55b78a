"""Settings of the server: bounds, lifetimes and addresses, with their units.

Read from `server.toml` in the state folder, then from `EDGEWISE_SERVER_*` environment
variables, then from arguments; the later wins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from edgewise_protocol.agent import parse_version
from edgewise_protocol.bounds import MAX_BUNDLE_BYTES, MIB
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from edgewise_server.errors import SettingsError

SETTINGS_FILE: Final = "server.toml"
ServerRole = Literal["all", "api", "bridge", "orchestrator"]


class Settings(BaseSettings):
    """All settings. Times are seconds unless the name says days."""

    model_config = SettingsConfigDict(env_prefix="EDGEWISE_SERVER_", extra="forbid", frozen=True)

    state: Path
    """Folder of keys, database and blobs."""
    database_url: str = ""
    """Empty: SQLite in the state folder. Else e.g. `postgresql+psycopg://user@host/name`."""

    http_host: str = "127.0.0.1"
    http_port: int = Field(8470, ge=0, le=65535)
    http_certificate_file: Path | None = None
    """PEM chain; with `http_key_file` the API is served by TLS. `edgewise-server certificate` makes both."""
    http_key_file: Path | None = None
    public_url: str = ""
    """What devices and people use to reach the API; empty: made of host and port."""

    embedded_broker: bool = True
    """Run the loopback broker of the demo inside; false where Mosquitto stands beside."""
    broker_host: str = "127.0.0.1"
    broker_port: int = Field(18830, ge=1, le=65535)
    broker_tls: bool = False
    broker_ca_file: Path | None = None
    broker_certificate_file: Path | None = None
    broker_key_file: Path | None = None
    broker_managed: bool = False
    """Keep certificates and revocation list of a Mosquitto in `broker/` of the state folder (`init --broker`)."""
    broker_address: str = ""
    """Address on which a managed broker listens; empty: all interfaces. `init` writes it into `mosquitto.conf`."""
    broker_public_host: str = ""
    """Name by which devices reach the broker; empty: `broker_host`, by which the server reaches it."""
    broker_public_port: int = Field(0, ge=0, le=65535)
    """Port by which devices reach the broker; 0: `broker_port`."""
    broker_public_transport: Literal["tcp", "websockets"] = "tcp"
    """How devices are told to reach the broker; `websockets` tells them `websocket_port`, unless a port is set."""
    broker_names: tuple[str, ...] = Field((), max_length=16)
    """More DNS names and IP addresses for the broker's certificate."""
    websocket_host: str = "127.0.0.1"
    websocket_port: int = Field(0, ge=0, le=65535)
    """Port of the gateway for MQTT over WebSocket, e.g. 443; 0: none. Needs a managed broker."""
    broker_certificate_days: float = Field(90, gt=0, le=825)
    """Life of the certificates of the broker and of the server at the broker; renewed after two thirds of it."""

    snapshot_days: float = Field(7, gt=0, le=365)
    timestamp_days: float = Field(1, gt=0, le=365)
    assignment_days: float = Field(7, gt=0, le=365)
    renewal_check_s: float = Field(60, gt=0, le=86_400)
    """How often the signer looks whether snapshot, timestamp or CRL need a new signature."""
    certificate_days: float = Field(365, gt=0, le=3650)
    crl_days: float = Field(7, gt=0, le=365)
    enrolment_s: float = Field(24 * 3600, gt=0, le=90 * 24 * 3600)
    """Life of an enrolment's one-time token."""

    max_blob_bytes: int = Field(MAX_BUNDLE_BYTES, ge=1, le=MAX_BUNDLE_BYTES)
    blob_quota_bytes: int = Field(20 * 1024 * MIB, ge=1)
    renew_grace_days: float = Field(30, ge=0, le=3650)
    """How long after its certificate's end a device may still renew by itself."""
    renew_per_minute: int = Field(600, ge=1, le=1_000_000)
    """Requests for renewal per minute and client address; ten times as many from all addresses together."""
    decommission_s: float = Field(3600, ge=0, le=90 * 24 * 3600)
    """How long a device that is decommissioned may take to report that it runs nothing any more."""
    enrol_per_minute: int = Field(60, ge=1, le=100_000)
    """Enrolments per minute and client address; ten times as many from all addresses together."""

    # orchestrator, bridge, monitoring and federation: add below this line
    tick_s: float = Field(0.5, gt=0, le=60)
    """Pause between two rounds of the orchestrator."""
    lease_s: float = Field(15, ge=2, le=300)
    """How long a process that died holds the bridge's or the orchestrator's lease."""
    retained_budget_bytes: int = Field(4096 * MIB, ge=MIB)
    """Payload bytes that the broker may be asked to retain."""
    message_days: float = Field(14, gt=0, le=3650)
    """How long events, telemetry and drift windows are kept."""
    alert_days: float = Field(90, gt=0, le=3650)
    """How long closed alerts are kept."""
    stream_days: float = Field(180, ge=30, le=3650)
    """How long the place in a silent device's stream is remembered."""
    audit_days: float = Field(365, ge=1, le=36_500)
    """How long it is kept who did what."""
    enrolment_days: float = Field(30, ge=1, le=3650)
    """How long used and expired enrolments are kept."""
    job_days: float = Field(30, ge=1, le=3650)
    """How long ended jobs are kept."""
    rollout_days: float = Field(180, ge=1, le=3650)
    """How long the history of ended rollouts is kept; a device's newest exposure is kept for ever."""
    federation_days: float = Field(180, ge=1, le=3650)
    """How long an ended federation's clients and the weights between its rounds are kept."""
    blob_grace_days: float = Field(7, ge=0.01, le=3650)
    """How long a file that nothing refers to is kept: an upload waits to be signed."""
    device_messages_per_s: float = Field(200, gt=0, le=100_000)
    """Messages that one device may send in the long run; ten seconds' worth at once."""
    upload_stall_s: float = Field(30, gt=0, le=3600)
    """An upload without a chunk for this long gives its place to the next."""

    minimum_agent_version: str = Field("", max_length=64)
    """PEP 440. Devices with an older agent get no new model, only a newer agent; empty: any agent will do."""

    @field_validator("minimum_agent_version")
    @classmethod
    def _check_version(cls, value: str) -> str:
        if value and parse_version(value) is None:
            raise ValueError(f"{value!r} is not a version as PEP 440 writes them, e.g. 0.2.0")
        return value

    @field_validator(
        "http_certificate_file",
        "http_key_file",
        "broker_ca_file",
        "broker_certificate_file",
        "broker_key_file",
        mode="before",
    )
    @classmethod
    def _no_file(cls, value: object) -> object:
        """An empty environment variable names no file."""
        return None if value == "" else value

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.state / 'server.db'}"

    @property
    def base_url(self) -> str:
        """URL of the API without its prefix."""
        scheme = "https" if self.http_certificate_file else "http"
        return self.public_url or f"{scheme}://{self.http_host}:{self.http_port}"

    @property
    def broker_files(self) -> Path:
        """Folder of what a managed Mosquitto reads."""
        return self.state / "broker"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        state = init_settings().get("state")
        file = TomlConfigSettingsSource(settings_cls, Path(state) / SETTINGS_FILE) if state else None
        return (init_settings, env_settings, *([file] if file else []))


def load_settings(state: Path, **overrides: object) -> Settings:
    """Settings of a state folder; an override of None is no override.

    Raises:
        SettingsError: a value is out of bounds, or a key is unknown.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        return Settings(state=state.resolve(), **given)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError(f"the settings are not valid: {_said(error)}") from error
    except ValueError as error:
        raise SettingsError(f"the settings are not valid: {error}") from error


def _said(error: ValidationError) -> str:
    """What is wrong with which key, in one line; no value of a key that may be a secret."""
    parts = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        text = item["msg"].removeprefix("Value error, ")
        parts.append(f"{key}: {text}" if key else text)
    return "; ".join(parts)
