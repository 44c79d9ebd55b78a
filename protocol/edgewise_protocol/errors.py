"""The error tree of the protocol: everything that a received document can be refused for.

Each class carries a stable `code`. Codes are never reused; the agent reports them and
the server stores them, so an operator sees the same word at both ends.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """A document or value breaks the contract between server, tools and device."""

    code = "protocol"


class MalformedError(ProtocolError):
    """The bytes are not a document of the expected kind, or exceed a bound."""

    code = "malformed"


class UnsupportedVersionError(ProtocolError):
    """The document is of a major version that this software does not know."""

    code = "unsupported-version"


class SignatureError(ProtocolError):
    """Metadata are not signed by the role that must sign them."""

    code = "signature"


class TopicError(ProtocolError):
    """A topic, or a name meant to become part of one, is not well formed."""

    code = "topic"


class BundleError(ProtocolError):
    """A bundle is damaged: its files do not match its manifest."""

    code = "bundle-damaged"


class ChunkError(BundleError):
    """A chunk's digest is not the one that the signed chunk index names."""

    code = "chunk-tampered"


class BundleDigestError(BundleError):
    """A whole file's length or digest is not the one that was signed."""

    code = "bundle-tampered"


class DoesNotFitError(ProtocolError):
    """A bundle does not fit the device that it was assigned to."""

    code = "does-not-fit"


class AssignmentError(ProtocolError):
    """An assignment must not be acted on."""

    code = "assignment"


class UnsignedAssignmentError(AssignmentError):
    """The director's signature is missing or wrong."""

    code = "assignment-unsigned"


class WrongDeviceError(AssignmentError):
    """The assignment is for another device."""

    code = "assignment-wrong-device"


class WrongChannelError(AssignmentError):
    """The assignment names a bundle outside of the device's channel."""

    code = "assignment-wrong-channel"


class StaleAssignmentError(AssignmentError):
    """The assignment is older than one that this device has already accepted."""

    code = "assignment-stale"


class AssignmentJumpError(AssignmentError):
    """The assignment's version is too far above the last: accepting it would shut out all that follow."""

    code = "assignment-version-jump"


class ExpiredAssignmentError(AssignmentError):
    """The assignment's expiry has passed."""

    code = "assignment-expired"


class UnknownTargetError(AssignmentError):
    """The assignment names a bundle that no trusted role has signed as named."""

    code = "assignment-unknown-target"


class BelowFloorError(AssignmentError):
    """The assigned version is below the floor in the offline-signed targets metadata."""

    code = "assignment-below-floor"


class OnlineSignedAgentError(AssignmentError):
    """An agent bundle is not signed by the offline targets keys themselves: it is code, no worker's key may sign it."""

    code = "agent-not-signed-offline"


class OfferError(ProtocolError):
    """A federated round's offer must not be acted on."""

    code = "round-offer"


class UnsignedOfferError(OfferError):
    """The signature of the `offers` role is missing or wrong."""

    code = "round-offer-unsigned"


class StaleOfferError(OfferError):
    """The offer is of an earlier round than one that this device has taken up."""

    code = "round-offer-stale"


class SketchError(ProtocolError):
    """Two sketches do not merge, or a sketch is not well formed."""

    code = "sketch"
