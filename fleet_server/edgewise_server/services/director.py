"""The director: tells a device, in signed metadata, what to run.

It chooses among bundles that are already signed for the device's channel, never below the
signed floor; a stolen director key permits no more.
"""

from __future__ import annotations

import msgspec
from edgewise_protocol.assignment import AssignmentBody, check_floor, check_offline, check_signed_as_named
from edgewise_protocol.bounds import MAX_ASSIGNMENT_BYTES, MAX_CONFIRM_WITHIN_S, MAX_MODELS
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.names import check_name
from edgewise_protocol.targets import SignedFile, channel_of
from sqlmodel import Session

from edgewise_server.db import hold_lock
from edgewise_server.errors import DirectorError
from edgewise_server.models.base import utc_now
from edgewise_server.models.devices import Device, DirectorCounter
from edgewise_server.services import devices, registry
from edgewise_server.services.repository import Repository
from edgewise_server.settings import Settings
from edgewise_server.trust.documents import TrustedSet
from edgewise_server.trust.keys import OnlineKeys
from edgewise_server.trust.online import OnlineSigner, expiry


class Director:
    """Signs assignments in the transactions of its callers."""

    def __init__(self, settings: Settings, repository: Repository, keys: OnlineKeys) -> None:
        self._settings, self._repository, self._signer = settings, repository, OnlineSigner(keys)

    def issue_assignment(
        self,
        session: Session,
        device_id: str,
        bundles: tuple[SignedFile, ...],
        deployment: str,
        confirm_within_s: int,
    ) -> bytes:
        """Sign a new assignment, one version newer than the last one ever signed for this id.

        Args:
            bundles: one file per model, possibly none, as the registry holds them.
            deployment: the rollout that asks; `none` outside of rollouts.
            confirm_within_s: seconds after which an unconfirmed version reverts by itself.

        Returns:
            The assignment's bytes, to be retained on `dev/{id}/assignment`.

        Raises:
            DirectorError: the device is revoked, or a bundle is not one that it may run.
            NotFoundError, NoTrustError: there is no such device, or no trust yet.
        """
        device = devices.get(session, device_id)
        if device.revoked_at is not None:
            raise DirectorError(f"the device {device_id} is revoked; it is assigned nothing")
        if device.decommission_by is not None and bundles:
            raise DirectorError(f"the device {device_id} is being decommissioned; it is assigned nothing")
        if not 1 <= confirm_within_s <= MAX_CONFIRM_WITHIN_S:
            raise DirectorError(f"confirm_within_s must be from 1 to {MAX_CONFIRM_WITHIN_S}")
        trusted = self._repository.current(session)
        try:
            check_name(deployment, "deployment")
            _check_bundles(session, trusted, device, bundles)
        except ProtocolError as error:
            raise DirectorError(f"{device_id} may not be assigned this: {error}") from error
        version = _next_version(session, device_id)
        expires = expiry(utc_now(), self._settings.assignment_days)
        body = AssignmentBody(
            device=device.id, channel=device.channel, confirm_within_s=confirm_within_s, deployment=deployment
        )
        payload = self._signer.assignment(
            trusted.root.signed, trusted.targets.signed, body, bundles, version=version, expires=expires
        )
        if len(payload) > MAX_ASSIGNMENT_BYTES:
            raise DirectorError(
                f"the assignment would have {len(payload)} bytes; at most {MAX_ASSIGNMENT_BYTES} are allowed"
            )
        device.assignment_version = version
        device.assignment = {
            "deployment": deployment,
            "expires": expires.isoformat(),
            "confirm_within_s": confirm_within_s,
            "bundles": [msgspec.to_builtins(file) for file in bundles],
        }
        session.add(device)
        session.flush()
        return payload


def _check_bundles(session: Session, trusted: TrustedSet, device: Device, bundles: tuple[SignedFile, ...]) -> None:
    if len({file.custom.model for file in bundles}) != len(bundles):
        raise DirectorError("an assignment names one bundle per model")
    if len(bundles) > MAX_MODELS:
        raise DirectorError(f"an assignment names at most {MAX_MODELS} models, not {len(bundles)}")
    for file in bundles:
        if file.custom.kind not in registry.ASSIGNABLE:
            raise DirectorError(f"{file.path} is neither an inference bundle nor an agent's")
        if channel_of(file.path) != device.channel:
            raise DirectorError(f"{file.path} is outside of the channel {device.channel!r} of {device.id}")
        check_signed_as_named(file, registry.signed_file(session, file.path))
        check_offline(file, trusted.targets.signed)
        check_floor(file, trusted.targets.signed)


def _next_version(session: Session, device_id: str) -> int:
    """One more than ever before for this id; never given twice."""
    hold_lock(session, "director")
    counter = session.get(DirectorCounter, device_id, populate_existing=True)
    if counter is None:
        counter = DirectorCounter(device_id=device_id)
    counter.version += 1
    session.add(counter)
    session.flush()
    return counter.version
