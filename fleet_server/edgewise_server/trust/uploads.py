"""Verification of new root, targets and delegated metadata against what is trusted."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.manifest import AGENT_MODEL
from edgewise_protocol.targets import (
    BESIDE,
    SignedFile,
    bundle_path,
    channel_of,
    from_target_file,
    is_agent,
    training_path,
)
from tuf.api.metadata import Metadata, Root, Targets

from edgewise_server.errors import DelegationError, TargetError, UnsignedError, VersionError
from edgewise_server.trust.documents import ROOT, TARGETS, TrustedSet, check_fresh, check_signed, is_signed
from edgewise_server.trust.keys import OnlineKeys
from edgewise_server.trust.rules import check_delegations, check_root, delegated_roles


def accept_root(new: Metadata[Root], trusted: TrustedSet, keys: OnlineKeys, now: datetime) -> TrustedSet:
    """The trusted set with a new root, which the old root and itself must sign."""
    _check_next(ROOT, new, trusted.root)
    check_signed(trusted.root.signed, ROOT, new)
    check_signed(new.signed, ROOT, new)
    check_fresh(new, ROOT, now)
    check_root(new.signed, keys)
    if not is_signed(new.signed, TARGETS, trusted.targets):
        raise UnsignedError(
            "the trusted targets metadata are not signed as the new root demands: "
            "first upload targets metadata that carry the old and the new keys' signatures"
        )
    return replace(trusted, root=new)


def accept_targets(new: Metadata[Targets], trusted: TrustedSet, keys: OnlineKeys, now: datetime) -> TrustedSet:
    """The trusted set with new top-level targets metadata.

    Delegated metadata that the new delegations no longer verify leave the set; their role
    has to upload again, signed by its new keys.
    """
    _check_next(TARGETS, new, trusted.targets)
    check_signed(trusted.root.signed, TARGETS, new)
    check_fresh(new, TARGETS, now)
    check_delegations(new.signed, keys)
    kept = {role: old for role, old in trusted.delegated.items() if is_signed(new.signed, role, old)}
    return replace(trusted, targets=new, delegated=kept)


def accept_delegated(
    role: str, new: Metadata[Targets], trusted: TrustedSet, current_version: int, now: datetime
) -> TrustedSet:
    """The trusted set with new metadata of a delegated role.

    Args:
        role: `rounds` or `auto/<channel>`; assignments and offers stand beside the repository.
        current_version: newest version of the role that was ever accepted, 0 for none.
    """
    if new.signed.version != current_version + 1:
        raise VersionError(f"the {role} metadata have version {new.signed.version}; the next is {current_version + 1}")
    if role in BESIDE or role not in delegated_roles(trusted.targets.signed):
        raise DelegationError(f"the trusted targets metadata do not delegate to the role {role[:80]!r}")
    check_signed(trusted.targets.signed, role, new)
    check_fresh(new, role, now)
    if new.signed.delegations is not None:
        raise DelegationError(f"the role {role} must not delegate further")
    return replace(trusted, delegated={**trusted.delegated, role: new})


def signed_files(role: str, targets: Targets, authority: Targets) -> dict[str, SignedFile]:
    """The files that a role's metadata name, each checked for what its path and `custom` say.

    Args:
        role: `targets` or a delegated role.
        targets: the role's metadata.
        authority: the trusted top-level targets metadata, whose delegations bound the paths.

    Raises:
        TargetError: a target is malformed, or its path is not the one of its custom.
        DelegationError: a target lies outside of the role's paths.
    """
    delegation = None if role == TARGETS else delegated_roles(authority).get(role)
    if role != TARGETS and delegation is None:
        raise DelegationError(f"the trusted targets metadata do not delegate to the role {role[:80]!r}")
    found: dict[str, SignedFile] = {}
    for path, target in targets.targets.items():
        if delegation is not None and not delegation.is_delegated_path(path):
            raise DelegationError(f"{path[:120]!r} lies outside of the paths of {role}")
        try:
            file = from_target_file(target)
            if role != TARGETS and is_agent(file.custom):
                raise DelegationError(
                    f"{path[:120]!r} is the agent's code, which only the offline targets keys may sign, not {role}"
                )
            expected = _path_of(file)
        except ProtocolError as error:
            raise TargetError(f"the target {path[:120]!r} is not acceptable: {error}") from error
        if expected != path:
            raise TargetError(f"the target {path[:120]!r} says of itself that it is {expected!r}")
        found[path] = file
    return found


def _path_of(file: SignedFile) -> str:
    custom, channel = file.custom, channel_of(file.path)
    if (custom.kind == "agent") != (custom.model == AGENT_MODEL):
        raise TargetError(f"agent bundles, and they alone, bear the name {AGENT_MODEL!r}")
    if custom.kind in ("inference", "agent"):
        return bundle_path(channel, custom.model, custom.profile, custom.version)
    if custom.kind == "training":
        return training_path(channel, custom.model, custom.version)
    raise TargetError(
        f"{file.path[:120]!r} is of the kind {custom.kind!r}; metadata name inference, training or agent bundles"
    )


def _check_next(role: str, new: Metadata[Any], old: Metadata[Any]) -> None:
    if new.signed.version != old.signed.version + 1:
        raise VersionError(
            f"the {role} metadata have version {new.signed.version}; the next one is {old.signed.version + 1}"
        )
