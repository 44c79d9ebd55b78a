"""Publishing a release: blobs, attestations, then metadata, and a last look at what came of it.

Before anything is sent, the release is held against what the server has, verified from the
operator's own root. Publishing the same release twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root, Targets

from edgewise_cli.client import Client
from edgewise_cli.errors import RefusedError, TrustError
from edgewise_cli.keys.ceremony import encode
from edgewise_cli.signing import attestation, metadata
from edgewise_cli.signing.release import Release
from edgewise_cli.trust.offline import OfflineView
from edgewise_cli.trust.repository import Repository

_TOP = "targets"


@dataclass(frozen=True)
class Published:
    """What a publication did. `changed` is false where the server had it all."""

    versions: dict[str, int]
    files: tuple[str, ...]
    changed: bool


def publish(
    client: Client, repository: Repository, release: Release, say: Callable[[str], None] = lambda _: None
) -> Published:
    """Publish a release.

    Raises:
        RefusedError: signatures are missing, or other metadata were published in the meantime.
        TrustError: what the server has, or the release, does not verify.
    """
    repository.refresh()
    waiting = {role: m for role, m in release.roles.items() if not _published(repository, role, m)}
    for role, new in waiting.items():
        check_successor(repository, role, new)
    if waiting:
        for file in release.files.values():
            say(f"uploading {file.path} ({file.length} bytes)")
            client.put_blob(file.sha256, release.blob(file))
            if (envelope := release.attestation(file)) is not None:
                attestation.verify(envelope, *_keys_for(repository, release, file.path))
                client.post("/attestations", {"bundle_sha256": file.sha256, "envelope": envelope})
        for role, new in waiting.items():
            say(f"publishing version {new.signed.version} of the role {role}")
            client.put_bytes(put_url(role), encode(new))
        repository.refresh()
        for role, new in waiting.items():
            if not _published(repository, role, new):
                raise TrustError(f"the server accepted the metadata of {role}, and serves others")
    return Published(
        versions={role: m.signed.version for role, m in release.roles.items()},
        files=tuple(sorted(release.files)),
        changed=bool(waiting),
    )


def put_url(role: str) -> str:
    """REST path that takes a role's new metadata."""
    return f"/metadata/{_TOP}" if role == _TOP else f"/metadata/delegated/{quote(role)}"


def check_successor(repository: Repository, role: str, new: Metadata[Targets]) -> None:
    """Check that `new` may follow the metadata that are trusted now.

    Raises:
        RefusedError, TrustError: it may not.
    """
    trusted = current(repository, role).signed
    if new.signed.version != trusted.version + 1:
        raise RefusedError(
            f"the release continues version {new.signed.version - 1} of {role}; "
            f"the server is at {trusted.version}: sign again",
            code="outdated-release",
        )
    state = metadata.signatures(delegator_of(repository, role), role, new)
    if not state.enough:
        raise RefusedError(
            f"{role} has {state.have} of {state.threshold} signatures: another key holder must sign the release",
            code="too-few-signatures",
            details={"have": state.have, "threshold": state.threshold},
        )
    if role != _TOP:
        metadata.check_paths(repository.targets().signed, role, new.signed, trusted)


def current(repository: Repository, role: str) -> Metadata[Targets]:
    """The trusted metadata of a role."""
    return repository.targets() if role == _TOP else repository.role(role)


def delegator_of(repository: Repository | OfflineView, role: str) -> Root | Targets:
    """Who delegates to a role."""
    return repository.root().signed if role == _TOP else repository.targets().signed


def _published(repository: Repository, role: str, new: Metadata[Targets]) -> bool:
    return current(repository, role).signed == new.signed


def _keys_for(repository: Repository, release: Release, path: str) -> tuple[list[Key], int]:
    role = next(r for r, m in release.roles.items() if path in m.signed.targets)
    delegator = delegator_of(repository, role)
    delegation = delegator.get_delegated_role(role)
    return [delegator.get_key(keyid) for keyid in delegation.keyids], delegation.threshold
