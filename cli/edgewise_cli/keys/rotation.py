"""A new root: one key replaced, or only the expiry moved on.

The new root carries the signatures of the old threshold and of the new one, so that every
device follows the chain from the root that it holds (TUF 1.0.33, section 6.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from edgewise_cli.errors import TrustError, UsageError
from edgewise_cli.keys.ceremony import ROOT_LIFE, sign


def next_root(
    trusted: Metadata[Root],
    signers: Sequence[Signer],
    *,
    now: datetime,
    replace: tuple[str, Key] | None = None,
) -> Metadata[Root]:
    """The next root, signed by `signers`.

    Args:
        trusted: the newest verified root.
        signers: root signers, old and new; enough for both thresholds.
        replace: key id of a root key to retire, and the key that takes its place.

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
    wanted = set(new.roles["root"].keyids) | set(trusted.signed.roles["root"].keyids)
    made: Metadata[Root] = sign(Metadata(new), [s for s in signers if s.public_key.keyid in wanted])
    for delegator, which in ((trusted.signed, "old"), (new, "new")):
        try:
            delegator.verify_delegate("root", made.signed_bytes, made.signatures)
        except RepositoryError as error:
            raise TrustError(f"too few signatures for the {which} root: {error}") from error
    return made
