"""What can happen to a model's update. `at` is epoch seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgewise_protocol.targets import SignedFile


@dataclass(frozen=True, kw_only=True)
class Happened:
    at: float


@dataclass(frozen=True, kw_only=True)
class Assigned(Happened):
    """A verified assignment names this bundle."""

    target: SignedFile
    installed: bool
    """The bundle is in the store, verified."""
    assignment_version: int
    deployment: str
    confirm_within_s: float


@dataclass(frozen=True, kw_only=True)
class Unassigned(Happened):
    """A verified assignment does not name the model."""


@dataclass(frozen=True, kw_only=True)
class Downloaded(Happened):
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Verified(Happened):
    """Digest, manifest and fit are checked; the bundle is in the store."""

    sha256: str


@dataclass(frozen=True, kw_only=True)
class TurnGranted(Happened):
    """The device may test and activate now."""

    sha256: str


@dataclass(frozen=True, kw_only=True)
class SelfTestPassed(Happened):
    sha256: str
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Confirmed(Happened):
    """Probation is passed, and the fleet could have objected."""

    sha256: str


@dataclass(frozen=True, kw_only=True)
class Failed(Happened):
    """Work on a bundle, or its activation, failed."""

    sha256: str
    code: str
    text: str
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Damaged(Happened):
    """A bundle that was verified and stored is not whole any more. The disk is at fault, not the version."""

    sha256: str
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Fault(Happened):
    """The engine failed in service."""

    sha256: str
    code: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Expired(Happened):
    """The time to confirm is over."""

    sha256: str


@dataclass(frozen=True, kw_only=True)
class Booted(Happened):
    """The agent's process starts."""

    max_boots: int
    counted: bool = True
    """False where the process is known to have died while another model was loaded."""


@dataclass(frozen=True, kw_only=True)
class Settled(Happened):
    """The process has run well for a while."""


@dataclass(frozen=True, kw_only=True)
class Stopped(Happened):
    """The process is stopped in order."""


Event = (
    Assigned
    | Unassigned
    | Downloaded
    | Verified
    | TurnGranted
    | SelfTestPassed
    | Confirmed
    | Failed
    | Damaged
    | Fault
    | Expired
    | Booted
    | Settled
    | Stopped
)
