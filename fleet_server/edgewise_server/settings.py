"""Settings of the server: bounds, lifetimes and addresses, with their units.

Read from `server.toml` in the state folder, then from `EDGEWISE_SERVER_*` environment
variables, then from arguments; the later wins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from edgewise_protocol.bounds import MAX_BUNDLE_BYTES, MIB
from pydantic import Field, ValidationError
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
    gap_s: float = Field(5, gt=0, le=3600)
    """How long a missing message of a device's stream is waited for."""
    upload_stall_s: float = Field(30, gt=0, le=3600)
    """An upload without a chunk for this long gives its place to the next."""

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.state / 'server.db'}"

    @property
    def base_url(self) -> str:
        """URL of the API without its prefix."""
        return self.public_url or f"http://{self.http_host}:{self.http_port}"

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
    except (ValidationError, ValueError) as error:
        raise SettingsError(f"the settings are not valid: {error}") from error
