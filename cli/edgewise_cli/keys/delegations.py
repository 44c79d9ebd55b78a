"""The delegations of the top-level targets role: who may sign for which paths.

    director        dev/*                  assignments; held by the server
    rounds          rounds/*/*/*           training bundles
    offers          no path                round offers, which stand beside the repository
    auto/<channel>  <channel>/*/*/*        bundles of one channel that opted in

Which channels opted in stands in the same offline-signed metadata; the worker asks there
before it signs an offer, and before a round names a channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgewise_protocol.errors import TopicError
from edgewise_protocol.names import check_name
from edgewise_protocol.targets import CUSTOM_KEY, DIRECTOR, OFFERS, ROUNDS, auto_role
from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Delegations, Targets

from edgewise_cli.errors import RefusedError, UsageError

CHANNELS_KEY: Final = "channels"
"""In the targets metadata's `edgewise` field: channel name -> {"auto": bool}."""


def parse_channel(text: str) -> tuple[str, bool]:
    """`lab` is a channel, `lab:auto` one that opted in to what the worker signs.

    Raises:
        UsageError: it is neither, or the name is reserved.
    """
    name, _, mode = text.partition(":")
    try:
        check_name(name, "channel")
    except TopicError as error:
        raise UsageError(str(error)) from error
    if name in (ROUNDS, "dev"):
        raise UsageError(f"{name!r} is reserved and cannot be a channel")
    if mode not in ("", "auto"):
        raise UsageError(f"{text!r}: a channel is NAME or NAME:auto")
    return name, mode == "auto"


def channels(targets: Targets) -> dict[str, bool]:
    """The channels that the offline keys signed, and whether each opted in."""
    field: Any = targets.unrecognized_fields.get(CUSTOM_KEY) or {}
    try:
        return {str(name): bool(value["auto"]) for name, value in field.get(CHANNELS_KEY, {}).items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise RefusedError("the targets metadata's list of channels is damaged") from error


def set_channels(targets: Targets, wanted: Mapping[str, bool]) -> None:
    """Write the list of channels into the targets metadata."""
    field: Any = dict(targets.unrecognized_fields.get(CUSTOM_KEY) or {})
    field[CHANNELS_KEY] = {name: {"auto": auto} for name, auto in sorted(wanted.items())}
    targets.unrecognized_fields[CUSTOM_KEY] = field


def delegate(
    targets: Targets, *, director: Key, rounds: Key, offers: Key, auto: Mapping[str, Key], wanted: Mapping[str, bool]
) -> None:
    """Set the delegations of `targets` for these channels; existing ones are replaced.

    Args:
        auto: the worker's key per channel that opted in.
        wanted: every channel, and whether it opted in.
    """
    roles = {
        DIRECTOR: DelegatedRole(DIRECTOR, [], 1, False, paths=["dev/*"]),
        ROUNDS: DelegatedRole(ROUNDS, [], 1, False, paths=[f"{ROUNDS}/*/*/*"]),
        OFFERS: DelegatedRole(OFFERS, [], 1, False, paths=[]),
    }
    keys = [(DIRECTOR, director), (ROUNDS, rounds), (OFFERS, offers)]
    for name in sorted(n for n, opted in wanted.items() if opted):
        role = auto_role(name)
        roles[role] = DelegatedRole(role, [], 1, False, paths=[f"{name}/*/*/*"])
        keys.append((role, auto[name]))
    targets.delegations = Delegations({}, roles)
    for role, key in keys:
        targets.add_key(key, role)
    set_channels(targets, wanted)
