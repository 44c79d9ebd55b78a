"""What root and targets metadata must say, beyond being signed.

The online keys get snapshot, timestamp and the director's delegation, each alone, and
nothing else; delegations are Edgewise's own and bind paths to channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgewise_protocol.assignment import floors
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.names import check_name
from edgewise_protocol.targets import DIRECTOR, OFFERS, ROUNDS
from tuf.api.metadata import DelegatedRole, Delegations, Key, Root, Targets

from edgewise_server.errors import DelegationError, InvalidError, OnlineKeyError
from edgewise_server.trust.keys import OnlineKeys

DIRECTOR_PATHS: Final = ("dev/*",)
ROUNDS_PATHS: Final = (f"{ROUNDS}/*/*/*",)
AUTO: Final = "auto/"


def check_root(root: Root, keys: OnlineKeys) -> None:
    """Check a root's roles.

    Raises:
        OnlineKeyError: an online role is not ours alone, or an offline one holds our key.
        InvalidError: snapshots are not consistent.
    """
    if not root.consistent_snapshot:
        raise InvalidError("the root must set consistent_snapshot: devices fetch versioned files")
    for name in ("snapshot", "timestamp"):
        role = root.roles[name]
        trusted = [root.keys[k] for k in role.keyids if k in root.keys]
        keys.find(name, trusted)
        if role.threshold != 1 or len(trusted) != 1:
            raise OnlineKeyError(f"the role {name} must have this server's key alone, and threshold 1")
    for name in ("root", "targets"):
        _check_offline(name, [root.keys[k] for k in root.roles[name].keyids if k in root.keys], keys)


def check_delegations(targets: Targets, keys: OnlineKeys) -> None:
    """Check the delegations and floors of the top-level targets metadata.

    Raises:
        DelegationError: a delegation is unknown, its paths are not those of its name, or it shares a key.
        OnlineKeyError: the director is not this server, or a worker's role holds our key.
    """
    try:
        floors(targets)
    except ProtocolError as error:
        raise InvalidError(str(error)) from error
    delegations = targets.delegations
    roles = delegated_roles(targets)
    if delegations is None or DIRECTOR not in roles:
        raise DelegationError("the targets metadata must delegate to the director")
    for name, role in roles.items():
        if role.terminating:
            raise DelegationError(f"the delegation to {name} must not be terminating")
        if role.paths is None or tuple(role.paths) != paths_of(name):
            wanted = ", ".join(paths_of(name)) or "(none)"
            raise DelegationError(f"the delegation to {name} must have the paths {wanted}")
        held = _keys_of(delegations, role)
        if name == DIRECTOR:
            keys.find(DIRECTOR, held)
            if role.threshold != 1 or len(held) != 1:
                raise OnlineKeyError("the director must be this server's key alone, with threshold 1")
        else:
            _check_offline(name, held, keys)
    _check_apart({name: _keys_of(delegations, role) for name, role in roles.items()})


def _check_apart(held: Mapping[str, list[Key]]) -> None:
    """A signature does not name its role: with a shared key, what is signed as one role is signed as the other."""
    found: dict[str, str] = {}
    for name, keys in held.items():
        for key in keys:
            other = found.setdefault(str(sorted(key.keyval.items())), name)
            if other != name:
                raise DelegationError(f"the roles {other} and {name} share a key: each role needs keys of its own")


def paths_of(role: str) -> tuple[str, ...]:
    """The path patterns that a delegated role must have.

    Raises:
        DelegationError: Edgewise has no such role.
    """
    if role == DIRECTOR:
        return DIRECTOR_PATHS
    if role == ROUNDS:
        return ROUNDS_PATHS
    if role == OFFERS:
        return ()
    channel = role.removeprefix(AUTO)
    try:
        if role.startswith(AUTO) and check_name(channel, "channel") not in (ROUNDS, "dev"):
            return (f"{channel}/*/*/*",)
    except ProtocolError as error:
        raise DelegationError(f"the delegation {role[:80]!r} names no channel: {error}") from error
    raise DelegationError(f"{role[:80]!r} is not a role that targets may delegate to")


def delegated_roles(targets: Targets) -> dict[str, DelegatedRole]:
    """The delegations of the targets metadata by name."""
    delegations = targets.delegations
    return dict(delegations.roles) if delegations is not None and delegations.roles is not None else {}


def keys_of_role(root: Root, targets: Targets, role: str) -> dict[str, Key]:
    """The trusted keys of `targets` or of a delegated role, by key id; empty for an unknown role."""
    if role == "targets":
        return {k: root.keys[k] for k in root.roles["targets"].keyids if k in root.keys}
    delegation = delegated_roles(targets).get(role)
    if delegation is None or targets.delegations is None:
        return {}
    return {key.keyid: key for key in _keys_of(targets.delegations, delegation)}


def _keys_of(delegations: Delegations, role: DelegatedRole) -> list[Key]:
    return [delegations.keys[k] for k in role.keyids if k in delegations.keys]


def _check_offline(name: str, held: list[Key], keys: OnlineKeys) -> None:
    if any(keys.owns(key) for key in held):
        raise OnlineKeyError(f"the role {name} holds a key of this server; it must stay off the server")
