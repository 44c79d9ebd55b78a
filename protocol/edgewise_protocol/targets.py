"""Paths and `custom` of bundles in the TUF repository.

A bundle is a target under `<channel>/<model>/<profile>/<version>.ewb`; TUF delegates by
path, so the channel binds, offline, what an online role may choose. Training bundles and
round weights stand under `rounds/<channel>/...`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from tuf.api.metadata import TargetFile

from edgewise_protocol.bounds import MAX_BUNDLE_BYTES
from edgewise_protocol.bundle import SUFFIX
from edgewise_protocol.errors import MalformedError, TopicError
from edgewise_protocol.manifest import AGENT_MODEL, Manifest, Name, Sha256, Version
from edgewise_protocol.names import check_name

CUSTOM_KEY: Final = "edgewise"
ROUNDS: Final = "rounds"
"""The role that signs training bundles, and the first part of their paths and of weights'."""
DIRECTOR: Final = "director"
"""The role that signs assignments."""
OFFERS: Final = "offers"
"""The role that signs round offers. It may sign for no path."""
BESIDE: Final = frozenset({DIRECTOR, OFFERS})
"""Roles whose documents stand beside the repository: there are no metadata of these roles in it.

TUF signatures do not name their role, so what keeps an assignment, an offer and role metadata
apart is that no two of these roles share a key.
"""


def auto_role(channel: str) -> str:
    """The delegated role that a worker holds for a channel that opted in."""
    return f"auto/{check_name(channel, 'channel')}"


def bundle_path(channel: str, model: str, profile: str, version: int) -> str:
    """Target path of an inference bundle or an agent bundle."""
    if check_name(channel, "channel") == ROUNDS:
        raise TopicError(f"{ROUNDS!r} is reserved and cannot be a channel")
    return f"{channel}/{check_name(model, 'model')}/{check_name(profile, 'profile')}/{version}{SUFFIX}"


def training_path(channel: str, model: str, version: int) -> str:
    """Target path of a training bundle."""
    return f"{ROUNDS}/{check_name(channel, 'channel')}/{check_name(model, 'model')}/{version}{SUFFIX}"


def weights_path(channel: str, model: str, round_id: str) -> str:
    """Target path of the weights that a round starts from."""
    return (
        f"{ROUNDS}/{check_name(channel, 'channel')}/{check_name(model, 'model')}/"
        f"{check_name(round_id, 'round id')}.safetensors"
    )


def channel_of(path: str) -> str:
    """The channel that a target path belongs to."""
    parts = path.split("/")
    return parts[1] if parts[0] == ROUNDS and len(parts) > 1 else parts[0]


class TargetCustom(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a signed target says of a file besides its length and digest."""

    chunk_index: Sha256
    """SHA-256 of the chunk index, see `edgewise_protocol.chunks`."""
    kind: str = "inference"
    """`inference`, `training`, `weights` or `agent`."""
    model: Name = "unnamed"
    version: Version = 1
    profile: Name = "any"
    compatible: tuple[str, ...] = ()
    engine: str = ""
    lineage: Annotated[dict[str, str], Meta(max_length=64)] = {}


def is_agent(custom: TargetCustom) -> bool:
    """Whether a target is an agent's code, or bears its name: only offline keys may sign it (see `check_offline`)."""
    return custom.kind == "agent" or custom.model == AGENT_MODEL


class SignedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a trusted role has signed for: all that a download needs."""

    path: str
    length: Annotated[int, Meta(ge=0, le=MAX_BUNDLE_BYTES)]
    sha256: Sha256
    custom: TargetCustom


def custom_for(manifest: Manifest, chunk_index_sha256: str) -> TargetCustom:
    """The `custom` of a bundle with this manifest."""
    return TargetCustom(
        chunk_index=chunk_index_sha256,
        kind=manifest.kind,
        model=manifest.model,
        version=manifest.version,
        profile=manifest.profile,
        compatible=manifest.requires.compatible,
        engine=manifest.requires.engine,
        lineage=manifest.lineage,
    )


def to_target_file(file: SignedFile) -> TargetFile:
    """The python-tuf target of a file."""
    return TargetFile(
        file.length,
        {"sha256": file.sha256},
        file.path,
        unrecognized_fields={"custom": {CUSTOM_KEY: msgspec.to_builtins(file.custom)}},
    )


def from_target_file(target: TargetFile) -> SignedFile:
    """Read a python-tuf target.

    Raises:
        MalformedError: it has no SHA-256, or its `custom` is not Edgewise's.
    """
    custom: Any = target.custom
    try:
        return msgspec.convert(
            {
                "path": target.path,
                "length": target.length,
                "sha256": target.hashes["sha256"],
                "custom": custom[CUSTOM_KEY],
            },
            SignedFile,
        )
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise MalformedError(f"target {target.path[:120]!r} is not a well-formed Edgewise target: {error}") from error
