"""New targets metadata from the trusted old ones. Pure.

A path is signed for once: a second bundle of the same model, profile and version has to
take another version, so that a version means the same bytes for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from edgewise_protocol.assignment import FLOORS_KEY
from edgewise_protocol.targets import CUSTOM_KEY, SignedFile, to_target_file
from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from edgewise_cli.errors import RefusedError, TrustError
from edgewise_cli.keys.ceremony import TARGETS_LIFE, sign

RENEW_BEFORE: Final = timedelta(days=14)


@dataclass(frozen=True)
class Signatures:
    """How far a role's metadata are from their threshold."""

    have: int
    threshold: int

    @property
    def enough(self) -> bool:
        return self.have >= self.threshold


def add_files(trusted: Targets, files: Sequence[SignedFile], *, now: datetime) -> Targets:
    """The next version of a targets role that also names `files`.

    Raises:
        RefusedError: a path is already signed with other bytes.
    """
    new = successor(trusted, now)
    for file in files:
        old = new.targets.get(file.path)
        target = to_target_file(file)
        if old is not None and old.hashes != target.hashes:
            raise RefusedError(
                f"{file.path} is already signed with other bytes: convert again with a higher --version",
                code="already-signed",
            )
        new.targets[file.path] = target
    return new


def successor(trusted: Targets, now: datetime) -> Targets:
    """A copy of a targets role, one version up, its expiry moved on."""
    new = Targets.from_dict(trusted.to_dict())
    new.version += 1
    new.expires = now + TARGETS_LIFE
    return new


def set_floor(targets: Targets, model: str, version: int) -> None:
    """Write into `targets` that no device may install `model` below `version`."""
    field: Any = dict(targets.unrecognized_fields.get(CUSTOM_KEY) or {})
    field[FLOORS_KEY] = {**field.get(FLOORS_KEY, {}), model: version}
    targets.unrecognized_fields[CUSTOM_KEY] = field


def sign_role(signed: Targets, signers: Sequence[Signer]) -> Metadata[Targets]:
    """Sign a targets role."""
    return sign(Metadata(signed), signers)


def cosign(metadata: Metadata[Targets], signers: Sequence[Signer]) -> int:
    """Add signatures to metadata that somebody else began; returns how many were new."""
    new = [s for s in signers if s.public_key.keyid not in metadata.signatures]
    sign(metadata, new)
    return len(new)


def signatures(delegator: Root | Targets, role: str, metadata: Metadata[Targets]) -> Signatures:
    """Count the valid signatures of a role's metadata.

    Raises:
        TrustError: the delegator knows no such role.
    """
    try:
        result = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    except (ValueError, RepositoryError) as error:
        raise TrustError(f"nothing that is trusted delegates to the role {role!r}") from error
    return Signatures(have=len(result.signed), threshold=result.threshold)


def check_paths(delegator: Targets, role: str, new: Targets, trusted: Targets) -> None:
    """Refuse targets that the role's delegation does not cover.

    Raises:
        TrustError: the role may not sign for a path that is new in `new`.
    """
    delegation = (delegator.delegations.roles or {}).get(role) if delegator.delegations else None
    if delegation is None:
        raise TrustError(f"the targets metadata delegate to no {role!r}")
    for path in new.targets:
        if path not in trusted.targets and not delegation.is_delegated_path(path):
            raise TrustError(f"the role {role!r} may not sign for {path!r}: its channel has not opted in")
