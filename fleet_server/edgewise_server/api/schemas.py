"""What the routes of access, trust, devices and registry take and give, as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Body(BaseModel):
    """Base of request bodies: an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid")


class Items(BaseModel, Generic[T]):
    items: list[T]


class Health(BaseModel):
    status: str = Field(examples=["ok"])
    version: str = Field(examples=["0.1.0"])


class RoleState(BaseModel):
    version: int
    expires: datetime


class TrustState(BaseModel):
    installed: bool
    roles: dict[str, RoleState]


class BrokerInfo(BaseModel):
    host: str
    port: int
    tls: bool


class Status(BaseModel):
    version: str
    roles: list[str]
    trust: TrustState
    counts: dict[str, int]
    broker: BrokerInfo
    warnings: list[str] = Field(examples=[["the targets metadata expire in 5 days: sign them again"]])


class TokenIn(Body):
    name: str = Field(pattern=NAME, max_length=64, examples=["ci"])
    role: str = Field(examples=["operator"], description="admin, operator, viewer or worker")
    expires_in_s: float | None = Field(None, gt=0, le=10 * 366 * 24 * 3600)


class TokenOut(BaseModel):
    id: str
    name: str
    role: str
    created_at: datetime
    expires_at: datetime | None


class NewToken(TokenOut):
    token: str = Field(examples=["ew_..."], description="Shown once; only its hash is kept.")


class AuditOut(BaseModel):
    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]


class CeremonyIn(BaseModel):
    """`ceremony.json`. Metadata are JSON objects, or strings that hold the JSON."""

    root: dict[str, Any] | str
    targets: dict[str, Any] | str
    delegated: dict[str, dict[str, Any] | str] = {}
    fleet_ca_pem: str
    intermediate_pem: str


class Installed(BaseModel):
    installed: bool = Field(description="False when the same trust was there already.")
    roles: dict[str, RoleState]


class TrustOut(TrustState):
    fleet_ca_pem: str
    intermediate_pem: str


class FleetCaIn(BaseModel):
    fleet_ca_pem: str = Field(min_length=1, max_length=16_384)
    intermediate_pem: str = Field(min_length=1, max_length=16_384)


class FleetCaOut(BaseModel):
    changed: bool = Field(description="False when it was in force already.")
    fleet_ca_pem: str
    intermediate_pem: str


class PublishedOut(BaseModel):
    role: str
    version: int
    snapshot: int
    timestamp: int
    added: list[str] = Field(examples=[["lab/digits/raspberry-pi-4-64/2.ewb"]])
    removed: list[str]


class BlobOut(BaseModel):
    sha256: str
    size: int
    chunk_index: str = Field(description="SHA-256 of the chunk index; goes into the signed target's custom.")


class AttestationIn(Body):
    bundle_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    envelope: dict[str, Any] = Field(
        examples=[
            {
                "payload": "eyJfdHlwZSI6...",
                "payloadType": "application/vnd.in-toto+json",
                "signatures": [{"keyid": "4b9f...", "sig": "MEQC..."}],
            }
        ]
    )


class AttestationsOut(BaseModel):
    bundle_sha256: str
    roles: list[str]
    keyids: list[str]


class AttestationOut(BaseModel):
    bundle_sha256: str
    role: str
    keyids: list[str]
    envelope: dict[str, Any]
    created_at: datetime


class EnrolmentIn(Body):
    channel: str = Field(pattern=NAME, max_length=64, examples=["lab"])
    groups: list[str] = Field([], max_length=32, examples=[["bench"]])
    name: str = Field("", max_length=64, examples=["camera-7"], description="Device id; empty: the server makes one.")
    expires_in_s: float | None = Field(None, gt=0, le=90 * 24 * 3600)


class EnrolmentOut(BaseModel):
    id: str
    channel: str
    groups: list[str]
    name: str
    created_by: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None
    device_id: str


class ReplacementIn(Body):
    expires_in_s: float | None = Field(None, gt=0, le=90 * 24 * 3600)


class DecommissionIn(Body):
    within_s: float | None = Field(
        None,
        ge=0,
        le=90 * 24 * 3600,
        description="How long the device may take to report that it runs nothing; 0 revokes it at once.",
    )


class ModelState(BaseModel):
    model: str
    state: str
    active_version: int
    target_version: int
    error_code: str


class DeviceOut(BaseModel):
    id: str
    channel: str
    online: bool
    simulated: bool
    machine: str
    compatible: list[str]
    agent_version: str
    agent_too_old: bool = Field(description="Older than `minimum_agent_version`: it gets no new model, only an agent.")
    enrolled_at: datetime
    last_seen_at: datetime | None
    revoked_at: datetime | None
    decommission_by: datetime | None
    decommissioned_at: datetime | None
    cloned_at: datetime | None = Field(description="When two machines were found to take turns with its identity.")
    cloned_instances: list[str] = Field(description="Salted fingerprints of the two machines.")
    assignment_version: int
    models: list[ModelState]


class Devices(BaseModel):
    items: list[DeviceOut]
    next: str | None = Field(description="Pass as `after` for the next page.")


class AssignedBundle(BaseModel):
    model: str
    version: int
    profile: str
    path: str
    sha256: str


class AssignmentOut(BaseModel):
    version: int
    deployment: str
    expires: datetime
    confirm_within_s: int
    bundles: list[AssignedBundle]


class CertificateOut(BaseModel):
    serial: str
    not_after: datetime
    key_sha256: str = Field(description="SHA-256 of the registered public key (SubjectPublicKeyInfo).")
    renewed_serial: str = Field(description="Of a renewed certificate that has not been seen in use yet; or empty.")


class DeviceDetail(DeviceOut):
    facts: dict[str, Any]
    reported: dict[str, Any] | None
    serving_url: str
    certificate: CertificateOut
    assignment: AssignmentOut | None
    groups: list[str]


class GroupIn(Body):
    name: str = Field(pattern=NAME, max_length=64, examples=["bench"])
    query: str = Field("", max_length=500, examples=["channel == lab and machine == aarch64"])


class GroupOut(BaseModel):
    name: str
    query: str
    members: int


class GroupDetail(GroupOut):
    devices: list[str]


class ModelOut(BaseModel):
    model: str
    latest: int
    production: int | None
    versions: list[int]
    channels: list[str]


class VersionSummary(BaseModel):
    version: int
    stage: str
    created_at: datetime
    channels: list[str]
    bundles: int


class ModelDetail(BaseModel):
    model: str
    floor: int = Field(description="Lowest version that may be installed, from the signed targets; 0 for none.")
    versions: list[VersionSummary]


class BundleOut(BaseModel):
    path: str
    channel: str
    role: str
    profile: str
    engine: str
    format: str
    precision: str
    sha256: str
    length: int
    chunk_index: str
    compatible: list[str]
    metrics: dict[str, float]
    lineage: dict[str, str]
    trusted: bool
    attested_by: list[str]


class VersionDetail(BaseModel):
    model: str
    version: int
    stage: str
    created_at: datetime
    channels: list[str]
    lineage: dict[str, str] = Field(description="What all bundles of the version share.")
    bundles: list[BundleOut]


class StageIn(Body):
    stage: str = Field(examples=["production"], description="candidate, production or archived")
