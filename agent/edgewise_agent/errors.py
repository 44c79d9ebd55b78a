"""The agent's error tree. Every refusal has a `code` that names its cause; codes are part of what the fleet is told.

Errors of the protocol (`edgewise_protocol.errors`) carry codes too; `code_of` reads either.
"""

from __future__ import annotations

import errno
from typing import Final

from edgewise_protocol.errors import ProtocolError

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class AgentError(Exception):
    """Base of everything the agent raises. `code` is stable and is reported to the server."""

    code = "agent"


class ConfigError(AgentError):
    """A setting is unknown, of the wrong type or out of bounds."""

    code = "config"


class StateError(AgentError):
    """The state folder is missing, locked by another agent, or unreadable."""

    code = "state"


class StateDamagedError(StateError):
    """A state file was damaged and is set aside; what it held is lost, or comes from its other copy."""

    code = "state-damaged"


class StorageError(AgentError):
    """The disk refused a write."""

    code = "storage"


class DiskSpaceError(StorageError):
    """A download would not leave the free space that the device needs."""

    code = "disk-space"


class DiskFullError(StorageError):
    """There is no space left on the disk."""

    code = "disk-full"


class StoreDamagedError(StorageError):
    """A stored bundle is missing, or not what was verified: the disk damaged it."""

    code = "store-damaged"


class EndpointError(AgentError):
    """The serving endpoint cannot be opened, e.g. because its port is in use."""

    code = "endpoint"


class IdentityError(AgentError):
    """The device's key or certificate is missing or does not belong to the fleet."""

    code = "identity"


class NotEnrolledError(IdentityError):
    """The state folder holds no identity."""

    code = "not-enrolled"


class EnrolError(IdentityError):
    """The enrolment was refused or could not be carried out."""

    code = "enrol"


class EnrolmentUsedError(EnrolError):
    """The enrolment's token was used before, has expired or was withdrawn."""

    code = "enrolment-used"


class EnrolmentExpiredError(EnrolmentUsedError):
    """The enrolment's token has expired."""

    code = "enrolment-expired"


class UnknownBoardError(EnrolError):
    """The server knows no profile of the board that this machine is to stand in for."""

    code = "unknown-board"


class RenewalError(IdentityError):
    """The certificate could not be renewed."""

    code = "renewal"


class ServerUnreachableError(RenewalError):
    """The server cannot be asked, or its answer is not one."""

    code = "server-unreachable"


class ServerRefusedError(RenewalError):
    """The server answers that it will not. `problem` is its own code, `status` the HTTP status."""

    code = "server-refused"

    def __init__(self, message: str, status: int, problem: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.status, self.problem, self.retry_after_s = status, problem, retry_after_s


class SessionError(AgentError):
    """The broker cannot be talked to now."""

    code = "offline"


class PacketTooLargeError(SessionError):
    """The broker began a packet beyond the bound of the protocol, as an honest one never does."""

    code = "packet-too-large"


class FetchTimeoutError(SessionError):
    """The broker did not answer a request for retained messages in time."""

    code = "fetch-timeout"


class TrustError(AgentError):
    """The fleet's metadata cannot be trusted."""

    code = "metadata-invalid"


class MetadataUnavailableError(TrustError):
    """Metadata could not be fetched; nothing is known to be wrong with them."""

    code = "metadata-unavailable"


class ExpiredError(TrustError):
    """A role's metadata have expired: the fleet's word may be withheld from this device."""

    code = "metadata-expired"


class TimestampExpiredError(ExpiredError):
    """The timestamp has expired: somebody holds newer metadata back, or the server is away."""

    code = "timestamp-expired"


class SnapshotExpiredError(ExpiredError):
    code = "snapshot-expired"


class TargetsExpiredError(ExpiredError):
    code = "targets-expired"


class RootExpiredError(ExpiredError):
    code = "root-expired"


class MetadataUnsignedError(TrustError):
    """Metadata do not carry enough valid signatures of their role."""

    code = "metadata-unsigned"


class MetadataRollbackError(TrustError):
    """Metadata are older than ones that this device has accepted."""

    code = "metadata-rollback"


class MetadataTamperedError(TrustError):
    """Metadata do not have the length or digest that their parent names."""

    code = "metadata-tampered"


class ClockBehindError(TrustError):
    """The clock is before a time that verified metadata prove to be past."""

    code = "clock-behind"


class DownloadError(AgentError):
    """A file could not be fetched."""

    code = "download"


class ChunkUnavailableError(DownloadError):
    """The broker does not have a chunk, and nobody published it when asked."""

    code = "chunk-unavailable"


class InstallError(AgentError):
    """A bundle cannot be installed."""

    code = "install"


class ProxyError(SessionError):
    """The HTTP proxy cannot be reached, or does not carry the connection to the broker."""

    code = "proxy"


class BundleMismatchError(InstallError):
    """The bundle is not the model, version or profile that was signed for."""

    code = "bundle-mismatch"


class SelfTestError(InstallError):
    """The self-test failed: the model does not do on this device what it must."""

    code = "self-test"


class SelfTestCrashError(SelfTestError):
    """The self-test's process died."""

    code = "self-test-crashed"


class SelfTestTimeoutError(SelfTestError):
    """The self-test took longer than it may."""

    code = "self-test-timeout"


def storage_error(what: str, error: OSError) -> StorageError:
    """The error for what the operating system said: a full disk is told apart, since it passes."""
    kind = DiskFullError if error.errno in _FULL else StorageError
    return kind(f"{what}: {error.strerror or error}")


def code_of(error: BaseException) -> str:
    """The code that names an error's cause."""
    if isinstance(error, AgentError | ProtocolError):
        return error.code
    return "internal"
