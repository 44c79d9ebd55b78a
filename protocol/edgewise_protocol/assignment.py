"""Assignments: who runs what, as TUF Targets metadata for one device, signed by the director.

Uptane's Director repository (Uptane Standard 2.1.0, section 5.4.2.2). The metadata stay out of
the snapshot, so a fleet's size does not make it grow; therefore they are verified here, beside
the TUF updater, against the `director` delegation of the trusted targets metadata. What never
goes back is the assignment's version, not the model's.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from tuf.api.metadata import Metadata, Targets

from edgewise_protocol.bounds import (
    MAX_ASSIGNMENT_BYTES,
    MAX_ASSIGNMENT_VERSION,
    MAX_CONFIRM_WITHIN_S,
    MAX_MODELS,
    MAX_VERSION_JUMP,
)
from edgewise_protocol.errors import (
    AssignmentError,
    AssignmentJumpError,
    BelowFloorError,
    ExpiredAssignmentError,
    MalformedError,
    OnlineSignedAgentError,
    SignatureError,
    StaleAssignmentError,
    UnknownTargetError,
    UnsignedAssignmentError,
    WrongChannelError,
    WrongDeviceError,
)
from edgewise_protocol.manifest import AGENT_MODEL, Name, check_major
from edgewise_protocol.metadata import check_signed, keys_digest, parse_targets
from edgewise_protocol.targets import (
    CUSTOM_KEY,
    DIRECTOR,
    SignedFile,
    bundle_path,
    channel_of,
    from_target_file,
    is_agent,
    to_target_file,
)

FLOORS_KEY: Final = "floors"
"""In the targets metadata's `edgewise` field: model name -> lowest version that may be installed."""


class AssignmentBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The `edgewise` field of an assignment's signed part."""

    device: Name
    channel: Name
    confirm_within_s: Annotated[int, Meta(ge=1, le=MAX_CONFIRM_WITHIN_S)]
    """A version that is not confirmed this long after its assignment was accepted reverts by itself."""
    deployment: Name = "none"
    """The rollout that made the assignment; reported back."""
    spec_version: str = "1.0"


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """A verified assignment. `bundles` holds one signed file per model, possibly none."""

    version: int
    expires: datetime
    body: AssignmentBody
    bundles: tuple[SignedFile, ...]
    keys: str
    """Digest of the director's keys, see `metadata.keys_digest`; to be remembered with the version."""


class Accepted(msgspec.Struct, frozen=True):
    """What a device remembers of the newest assignment that it accepted."""

    version: int = 0
    """0: none."""
    keys: str = ""
    """Digest of the director's keys then; empty where it was not remembered yet, which forgets nothing."""

    def under(self, keys: str) -> Accepted:
        """What still counts when the director's keys are `keys`: nothing, if they were replaced."""
        return self if self.keys in ("", keys) else Accepted(0, keys)


def build_assignment(
    body: AssignmentBody, bundles: tuple[SignedFile, ...], *, version: int, expires: datetime
) -> Metadata[Targets]:
    """The unsigned metadata of an assignment; the server's director signs it."""
    targets = Targets(
        version=version,
        expires=expires,
        targets={file.path: to_target_file(file) for file in bundles},
        unrecognized_fields={CUSTOM_KEY: msgspec.to_builtins(body)},
    )
    return Metadata(targets)


def verify_assignment(
    data: bytes,
    trusted: Targets,
    *,
    device_id: str,
    channel: str,
    now: datetime,
    accepted: Accepted,
    allow_expired: bool = False,
) -> Assignment:
    """Verify an assignment against trusted, refreshed targets metadata.

    Args:
        data: bytes of the assignment, as received.
        trusted: the top-level targets metadata that the TUF client has verified.
        device_id, channel: this device's identity, from its certificate.
        now: aware UTC time, not before the device's clock floor.
        accepted: the newest assignment accepted so far. The same version may be presented
            again; an older one may not, nor one that is more than 2**20 above it. When the
            director's keys have been replaced since, it counts no more.
        allow_expired: accept an expired one, as a revert to a bundle already installed may need.

    Raises:
        MalformedError, UnsupportedVersionError: it cannot be read.
        UnsignedAssignmentError, WrongDeviceError, WrongChannelError, StaleAssignmentError,
        AssignmentJumpError, ExpiredAssignmentError: it must not be acted on.
    """
    metadata = parse_targets(data, MAX_ASSIGNMENT_BYTES, "assignment")
    try:
        check_signed(trusted, DIRECTOR, metadata)
    except SignatureError as error:
        raise UnsignedAssignmentError(f"the assignment is not signed by this fleet's director: {error}") from error
    signed = metadata.signed
    try:
        body = msgspec.convert(signed.unrecognized_fields.get(CUSTOM_KEY), AssignmentBody)
    except msgspec.ValidationError as error:
        raise MalformedError(f"the assignment's edgewise field is not valid: {error}") from error
    check_major(body.spec_version)
    if body.device != device_id:
        raise WrongDeviceError(f"the assignment is for the device {body.device!r}; this one is {device_id!r}")
    keys = keys_digest(trusted, DIRECTOR)
    _check_version(signed.version, accepted.under(keys).version)
    if signed.expires <= now and not allow_expired:
        raise ExpiredAssignmentError(f"the assignment expired at {signed.expires.isoformat()}")
    bundles = tuple(from_target_file(target) for _, target in sorted(signed.targets.items()))
    for file in bundles:
        if body.channel != channel or channel_of(file.path) != channel:
            raise WrongChannelError(f"the assignment names {file.path!r}; this device's channel is {channel!r}")
        _check_path(file, channel)
    if len({file.custom.model for file in bundles}) != len(bundles):
        raise AssignmentError("the assignment names two bundles of one model")
    if len(bundles) > MAX_MODELS:
        raise AssignmentError(f"the assignment names {len(bundles)} models; at most {MAX_MODELS} are allowed")
    return Assignment(version=signed.version, expires=signed.expires, body=body, bundles=bundles, keys=keys)


def _check_version(version: int, accepted: int) -> None:
    if version < accepted:
        raise StaleAssignmentError(f"the assignment has version {version}; version {accepted} was accepted before")
    if version > MAX_ASSIGNMENT_VERSION or (accepted and version > accepted + MAX_VERSION_JUMP):
        raise AssignmentJumpError(
            f"the assignment has version {version}, too far above {accepted}, the last accepted: the director's key "
            "may be in other hands; replace the online keys (`edgewise keys rotate-online`)"
        )


def _check_path(file: SignedFile, channel: str) -> None:
    """What serves stands under its channel; what the `rounds` role signs never does (see `targets`)."""
    custom = file.custom
    if custom.kind not in ("inference", "agent") or (custom.kind == "agent") != (custom.model == AGENT_MODEL):
        raise AssignmentError(f"the assignment names {file.path!r}, a {custom.kind} bundle that cannot run under it")
    if file.path != bundle_path(channel, custom.model, custom.profile, custom.version):
        raise AssignmentError(
            f"the assignment names {file.path!r}, which is not the path of an inference bundle of "
            f"{custom.model} {custom.version}"
        )


def check_signed_as_named(file: SignedFile, signed: SignedFile | None) -> None:
    """Hold an assigned file against what the bundle's own role signed (mix-and-match, arbitrary bundle).

    Raises:
        UnknownTargetError: no trusted role signed this path, or with another length, digest or custom.
            The custom counts: the floor is looked up by it.
    """
    if signed is None:
        raise UnknownTargetError(f"no trusted role has signed {file.path!r}")
    if (signed.sha256, signed.length, signed.custom.chunk_index) != (file.sha256, file.length, file.custom.chunk_index):
        raise UnknownTargetError(f"{file.path!r} was signed with another digest than the one assigned")
    if signed.custom != file.custom:
        raise UnknownTargetError(f"{file.path!r} was signed as another model or version than the one assigned")


def check_offline(file: SignedFile, trusted: Targets) -> None:
    """Hold an agent bundle against the offline targets keys: the signature of a delegated role is not enough.

    Args:
        trusted: the top-level targets metadata, which name the bundle themselves.

    Raises:
        OnlineSignedAgentError: they do not name it, or with other bytes.
    """
    if not is_agent(file.custom):
        return
    target = trusted.targets.get(file.path)
    if target is None or from_target_file(target) != file:
        raise OnlineSignedAgentError(
            f"{file.path!r} is the agent's code, which only the offline targets keys may sign: sign it with "
            "`edgewise sign`, and look into who holds the worker's keys"
        )


def floors(trusted: Targets) -> dict[str, int]:
    """Lowest installable version per model, from the offline-signed targets metadata."""
    field = trusted.unrecognized_fields.get(CUSTOM_KEY) or {}
    try:
        return msgspec.convert(field.get(FLOORS_KEY, {}), dict[str, int])
    except (AttributeError, msgspec.ValidationError) as error:
        raise MalformedError(f"the floors in the targets metadata are not valid: {error}") from error


def check_floor(file: SignedFile, trusted: Targets) -> None:
    """Raise `BelowFloorError` if the bundle is below its model's floor."""
    floor = floors(trusted).get(file.custom.model, 0)
    if file.custom.version < floor:
        raise BelowFloorError(
            f"{file.custom.model} {file.custom.version} is below the signed floor {floor}: it may not be installed"
        )
