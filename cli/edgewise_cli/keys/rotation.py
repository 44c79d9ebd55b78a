"""A new root: one key replaced, the online keys replaced, or only the expiry moved on.

The new root carries the signatures of the old threshold and of the new one, so that every
device follows the chain from the root that it holds (TUF 1.0.33, section 6.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from edgewise_protocol.renewal import FleetCaPins, set_fleet_ca_pins
from edgewise_protocol.targets import DIRECTOR
from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from edgewise_cli.errors import TrustError, UsageError
from edgewise_cli.keys.ceremony import ROOT_LIFE, OnlineKeys, sign
from edgewise_cli.signing.metadata import successor


def next_root(
    trusted: Metadata[Root],
    signers: Sequence[Signer],
    *,
    now: datetime,
    replace: tuple[str, Key] | None = None,
    online: OnlineKeys | None = None,
) -> Metadata[Root]:
    """The next root, signed by `signers`.

    Args:
        trusted: the newest verified root.
        signers: root signers, old and new; enough for both thresholds.
        replace: key id of a root key to retire, and the key that takes its place.
        online: new keys of snapshot and timestamp, where those in force were stolen.

    Raises:
        UsageError: the key to retire is not a root key.
        TrustError: the signatures do not meet both thresholds.
    """
    new = Root.from_dict(trusted.signed.to_dict())
    new.version += 1
    new.expires = now + ROOT_LIFE
    if replace is not None:
        old_id, key = replace
        if old_id not in new.roles["root"].keyids:
            raise UsageError(f"{old_id[:12]} is not a key of root")
        new.revoke_key(old_id, "root")
        new.add_key(key, "root")
    if online is not None:
        for role, key in (("snapshot", online.snapshot), ("timestamp", online.timestamp)):
            for keyid in list(new.roles[role].keyids):
                new.revoke_key(keyid, role)
            new.add_key(key, role)
    wanted = set(new.roles["root"].keyids) | set(trusted.signed.roles["root"].keyids)
    made: Metadata[Root] = sign(Metadata(new), [s for s in signers if s.public_key.keyid in wanted])
    for delegator, which in ((trusted.signed, "old"), (new, "new")):
        try:
            delegator.verify_delegate("root", made.signed_bytes, made.signatures)
        except RepositoryError as error:
            raise TrustError(f"too few signatures for the {which} root: {error}") from error
    return made


def rotate_director(trusted: Targets, online: OnlineKeys, pins: FleetCaPins, now: datetime) -> Targets:
    """The next targets metadata, after a theft of the online keys: another director, another intermediate CA.

    Raises:
        TrustError: the trusted metadata delegate to no director.
    """
    new = successor(trusted, now)
    roles = (new.delegations.roles or {}) if new.delegations else {}
    if DIRECTOR not in roles:
        raise TrustError("the targets metadata delegate to no director")
    for keyid in list(roles[DIRECTOR].keyids):
        new.revoke_key(keyid, DIRECTOR)
    new.add_key(online.director, DIRECTOR)
    set_fleet_ca_pins(new, pins)
    return new
