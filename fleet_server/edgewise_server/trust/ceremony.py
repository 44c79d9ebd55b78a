"""The key ceremony's result, as `edgewise keys init` writes it, and its verification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from edgewise_protocol.targets import BESIDE
from tuf.api.metadata import Metadata, Root, Targets

from edgewise_server.errors import DelegationError, InvalidError
from edgewise_server.trust.documents import ROOT, TARGETS, TrustedSet, check_fresh, check_signed, parse_object
from edgewise_server.trust.keys import OnlineKeys
from edgewise_server.trust.rules import check_delegations, check_root, delegated_roles

_MAX_ROLES = 1_000


@dataclass(frozen=True)
class Ceremony:
    """Parsed, not yet verified. `payloads` holds the bytes to store and serve, by role."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    delegated: Mapping[str, Metadata[Targets]]
    payloads: Mapping[str, bytes]
    fleet_ca_pem: str
    intermediate_pem: str


def parse_ceremony(document: Mapping[str, Any]) -> Ceremony:
    """Read `ceremony.json`.

    Raises:
        InvalidError: a part is missing or cannot be read.
    """
    given = document.get("delegated", {})
    if not isinstance(given, dict) or len(given) > _MAX_ROLES:
        raise InvalidError("the ceremony's `delegated` is not an object of roles")
    pems = {name: document.get(name) for name in ("fleet_ca_pem", "intermediate_pem")}
    for name, pem in pems.items():
        if not isinstance(pem, str) or not 0 < len(pem) <= 16_384:
            raise InvalidError(f"the ceremony lacks {name}")
    root, root_bytes = parse_object(document.get(ROOT), Root, ROOT)
    targets, targets_bytes = parse_object(document.get(TARGETS), Targets, TARGETS)
    parsed = {role: parse_object(value, Targets, role) for role, value in given.items()}
    return Ceremony(
        root=root,
        targets=targets,
        delegated={role: metadata for role, (metadata, _) in parsed.items()},
        payloads={ROOT: root_bytes, TARGETS: targets_bytes} | {role: data for role, (_, data) in parsed.items()},
        fleet_ca_pem=str(pems["fleet_ca_pem"]),
        intermediate_pem=str(pems["intermediate_pem"]),
    )


def verify_ceremony(ceremony: Ceremony, keys: OnlineKeys, now: datetime) -> TrustedSet:
    """Verify the first trust of a fleet: a root that signs itself, and all that follows from it.

    The CA certificates are `edgewise_server.pki`'s to check.

    Raises:
        TrustError and its kinds, InvalidError: the ceremony must not be installed.
    """
    root, targets = ceremony.root.signed, ceremony.targets.signed
    check_signed(root, ROOT, ceremony.root)
    check_fresh(ceremony.root, ROOT, now)
    check_root(root, keys)
    check_signed(root, TARGETS, ceremony.targets)
    check_fresh(ceremony.targets, TARGETS, now)
    check_delegations(targets, keys)
    expected = set(delegated_roles(targets)) - BESIDE
    if set(ceremony.delegated) != expected:
        difference = ", ".join(sorted(expected ^ set(ceremony.delegated)))
        raise DelegationError(
            f"the ceremony must hold exactly the delegated roles' metadata; it differs in {difference}"
        )
    for role, metadata in ceremony.delegated.items():
        check_signed(targets, role, metadata)
        check_fresh(metadata, role, now)
    return TrustedSet(ceremony.root, ceremony.targets, dict(ceremony.delegated))
