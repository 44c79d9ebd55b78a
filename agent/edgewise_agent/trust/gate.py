"""The gate that every assignment and offer passes before the device acts on it.

An assignment is acted on when the fleet's metadata are fresh, the director signed it for
this device, it is not older than the last, and an offline or delegated role signed each of
its bundles as named. When the metadata or the assignment have expired, or the clock is
behind, it may still withdraw the device to bundles that are installed already.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from edgewise_protocol.assignment import (
    Accepted,
    Assignment,
    check_floor,
    check_offline,
    check_signed_as_named,
    verify_assignment,
)
from edgewise_protocol.errors import ExpiredAssignmentError
from edgewise_protocol.renewal import FleetCaPins, fleet_ca_pins
from edgewise_protocol.rounds import Offer, verify_offer
from edgewise_protocol.targets import SignedFile

from edgewise_agent.errors import ClockBehindError, ExpiredError, MetadataUnavailableError
from edgewise_agent.trust.clock import ClockFloor
from edgewise_agent.trust.repository import Repository


@dataclass(frozen=True)
class Bearer:
    """Whom assignments must be for."""

    device_id: str
    channel: str


@dataclass(frozen=True)
class Verdict:
    """An assignment that may be acted on."""

    assignment: Assignment
    overlooked: Exception | None = None
    """What would have barred an installation, and is no reason to keep what is installed already from serving.

    It has to be told all the same: whoever holds the fleet's word back stops devices here, and nothing else shows it.
    """


class Gate:
    """Thread-safe: the installer and the federated client both ask.

    Args:
        repository: the verified metadata.
        clock: the floor under the clock.
        bearer: this device.
        installed: whether a bundle of this path and digest was verified and is in the store.
    """

    def __init__(
        self, repository: Repository, clock: ClockFloor, bearer: Bearer, installed: Callable[[SignedFile], bool]
    ) -> None:
        self._repository = repository
        self._clock = clock
        self._bearer = bearer
        self._installed = installed
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Bring the metadata up to date. Raises what `Repository.refresh` does."""
        with self._lock:
            self._repository.refresh()

    def fleet_ca_pins(self) -> FleetCaPins:
        """Which CA certificates the offline keys stand for, by the last verified metadata; none before the first.

        Raises:
            MalformedError: what they say cannot be read.
        """
        with self._lock:
            try:
                return fleet_ca_pins(self._repository.last_verified())
            except MetadataUnavailableError:
                return FleetCaPins()

    def assignment(self, data: bytes, accepted: Accepted) -> Verdict:
        """Verify an assignment against refreshed metadata.

        Args:
            data: as received.
            accepted: the newest accepted so far.

        Raises:
            AgentError, ProtocolError: with the code that names the cause.
        """
        with self._lock:
            try:
                trusted = self._repository.refresh()
                found = self._verify(data, accepted, allow_expired=False)
            except (ExpiredError, ClockBehindError, ExpiredAssignmentError) as refusal:
                return Verdict(self._withdrawal(data, accepted, refusal), refusal)
            for file in found.bundles:
                check_floor(file, trusted)
                signed = self._repository.find(file.path)
                if signed is not None or not self._installed(file):
                    check_signed_as_named(file, signed)
                    check_offline(file, trusted)
            return Verdict(found)

    def offer(self, data: bytes) -> Offer:
        """Verify a federated round's offer against refreshed metadata; raises like `assignment`."""
        with self._lock:
            trusted = self._repository.refresh()
            return verify_offer(
                data,
                trusted,
                device_id=self._bearer.device_id,
                channel=self._bearer.channel,
                now=self._clock.now(),
            )

    def _withdrawal(self, data: bytes, accepted: Accepted, refusal: Exception) -> Assignment:
        """Accept the assignment if all that it names is installed already; else raise the refusal."""
        try:
            found = self._verify(data, accepted, allow_expired=True)
        except MetadataUnavailableError:
            raise refusal from None
        if not found.bundles or not all(self._installed(file) for file in found.bundles):
            raise refusal
        trusted = self._repository.last_verified()
        for file in found.bundles:
            check_floor(file, trusted)
        return found

    def _verify(self, data: bytes, accepted: Accepted, *, allow_expired: bool) -> Assignment:
        return verify_assignment(
            data,
            self._repository.last_verified(),
            device_id=self._bearer.device_id,
            channel=self._bearer.channel,
            now=self._clock.now(),
            accepted=accepted,
            allow_expired=allow_expired,
        )
