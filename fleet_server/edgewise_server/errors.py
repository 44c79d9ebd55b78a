"""The error tree of the server: domain errors with a stable `code`.

They know no HTTP status; `edgewise_server.api.problems` maps codes to statuses. Errors of
`edgewise_protocol` keep their own codes and are mapped there too.
"""

from __future__ import annotations


class ServerError(Exception):
    """Something that the server refuses, or cannot do; the message is fit for an operator."""

    code = "server"


class SettingsError(ServerError):
    """The settings, or the state folder, cannot be used."""

    code = "settings"


class PortError(ServerError):
    """A port cannot be listened on: another program uses it, or this one may not."""

    code = "port"


class NotFoundError(ServerError):
    """A device, group, model, blob or document does not exist."""

    code = "not-found"


class ConflictError(ServerError):
    """The request contradicts what is there: a name is taken, a version is not the next one."""

    code = "conflict"


class InvalidError(ServerError):
    """A value is not acceptable."""

    code = "invalid"


class QueryError(InvalidError):
    """A group's query cannot be parsed."""

    code = "invalid-query"


class UnauthenticatedError(ServerError):
    """No bearer token, or one that is unknown, revoked or expired."""

    code = "unauthenticated"


class ForbiddenError(ServerError):
    """The token's role does not permit this."""

    code = "forbidden"


class TooManyRequestsError(ServerError):
    """A rate bound is exceeded. `retry_after_s` says when to try again."""

    code = "too-many-requests"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooLargeError(ServerError):
    """A request or file exceeds its bound."""

    code = "too-large"


class QuotaError(ServerError):
    """The blob store's quota is used up."""

    code = "quota"


class DigestError(ServerError):
    """Uploaded bytes do not have the digest that they were announced with."""

    code = "digest-mismatch"


class BusyError(ServerError):
    """The database is locked for longer than we wait; try again."""

    code = "busy"


class StorageFullError(ServerError):
    """The disk of the database is full: nothing is stored, and nothing is acknowledged. Make room."""

    code = "storage-full"


class DatabaseUnavailableError(ServerError):
    """The database does not answer, or a disk under it fails. What was not stored is tried again."""

    code = "database-unavailable"


class SchemaNewerError(ServerError):
    """A newer server has used the database; this one does not know its schema."""

    code = "schema-newer"


class TrustError(ServerError):
    """Signed metadata must not be trusted, or the trust is not in the state that an action needs."""

    code = "trust"


class NoTrustError(TrustError):
    """No ceremony has been installed yet."""

    code = "trust-missing"


class UnsignedError(TrustError):
    """Metadata lack signatures of the role that must sign them."""

    code = "trust-unsigned"


class ExpiredError(TrustError):
    """Metadata have expired."""

    code = "trust-expired"


class VersionError(TrustError):
    """Metadata are not exactly one version newer than the trusted ones."""

    code = "trust-version"


class OnlineKeyError(TrustError):
    """Metadata do not give an online role to this server's key, or give it a role that must stay offline."""

    code = "trust-online-key"


class DelegationError(TrustError):
    """A delegation is not one of Edgewise's, or a target lies outside of its role's paths."""

    code = "trust-delegation"


class TargetError(TrustError):
    """A signed target is not what its blob is: path, custom, digest, length or chunk index differ."""

    code = "target-mismatch"


class MissingBlobError(TrustError):
    """A signed target's file has not been uploaded."""

    code = "blob-missing"


class LineageError(TrustError):
    """A bundle's provenance is missing or wrong, or nobody of the signing role attests it."""

    code = "lineage"


class AttestationError(TrustError):
    """A DSSE envelope is not valid, or not signed by a trusted key."""

    code = "attestation"


class DirectorError(ServerError):
    """An assignment must not be issued."""

    code = "director"


class EnrolmentError(ServerError):
    """An enrolment is refused: the token is unknown, used or expired."""

    code = "enrolment-refused"


class EnrolmentExpiredError(EnrolmentError):
    """The enrolment's token has expired."""

    code = "enrolment-expired"


class UnknownBoardError(EnrolmentError):
    """A device stands in for a board that no profile describes."""

    code = "unknown-board"


class DeviceKeyUnknownError(ServerError):
    """A renewal is not signed by the key that is registered for the device."""

    code = "device-key-unknown"


class DeviceRevokedError(ServerError):
    """The device was revoked: it gets no certificate any more."""

    code = "device-revoked"


class DeviceDecommissionedError(ServerError):
    """The device was decommissioned: it gets no certificate any more."""

    code = "device-decommissioned"


class RenewalNonceError(ServerError):
    """A renewal's nonce is old, was used, or is another device's."""

    code = "renewal-nonce"


class RenewalTooLateError(ServerError):
    """The device's certificate expired longer ago than the grace period."""

    code = "renewal-too-late"


class CsrError(ServerError):
    """A certificate signing request is not acceptable."""

    code = "csr"


class CertificateError(ServerError):
    """A CA certificate is not the one that is needed."""

    code = "certificate"
