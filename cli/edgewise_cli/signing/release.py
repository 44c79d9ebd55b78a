"""A release folder: everything that is to be published at once, and nothing secret.

    release.json            what is in it
    metadata/<role>.json    new metadata of the roles that sign it, file names as TUF quotes them
    attestations/<sha256>.json
    blobs/<sha256>          the bundles

It can be carried from the machine that holds the keys to one that reaches the server, and
to a second signer in between.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

from edgewise_protocol.bundle import BundleReader
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.targets import SignedFile, from_target_file
from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Targets

from edgewise_cli import files
from edgewise_cli.errors import FilesError, RefusedError, TrustError
from edgewise_cli.keys.ceremony import encode
from edgewise_cli.signing import attestation, metadata
from edgewise_cli.signing.bundles import BundleFile, check_file, is_proven
from edgewise_cli.trust.repository import parse

INDEX: Final = "release.json"


@dataclass(frozen=True)
class Release:
    """A release folder, read."""

    path: Path
    channel: str
    roles: Mapping[str, Metadata[Targets]]
    files: Mapping[str, SignedFile]
    """Signed files by target path."""

    def blob(self, file: SignedFile) -> Path:
        return self.path / "blobs" / file.sha256

    def unproven(self) -> list[str]:
        """Target paths of the bundles whose manifests name no run on their board's instruction set.

        Raises:
            FilesError: a bundle cannot be read.
            RefusedError: it is damaged.
        """
        found = []
        for file in self.files.values():
            try:
                with self.blob(file).open("rb") as stream:
                    if not is_proven(BundleReader(stream).manifest):
                        found.append(file.path)
            except OSError as error:
                raise FilesError(f"{self.blob(file)} cannot be read: {error.strerror or error}") from error
            except ProtocolError as error:
                raise RefusedError(f"{file.path}: {error}", code=error.code) from error
        return found

    def attestation(self, file: SignedFile) -> dict[str, Any] | None:
        """The DSSE envelope of an inference bundle; a training bundle has none."""
        path = self.path / "attestations" / f"{file.sha256}.json"
        return files.read_json(path) if path.exists() else None


def create(
    folder: Path,
    channel: str,
    bundles: Mapping[str, Sequence[BundleFile]],
    trusted: Mapping[str, Targets],
    signers: Mapping[str, Sequence[Signer]],
    *,
    now: datetime,
) -> Release:
    """Sign bundles and write a release folder.

    Args:
        bundles: the bundles that each role is to sign for.
        trusted: verified metadata of these roles, which the new ones continue.
        signers: who signs for each role.

    Raises:
        RefusedError: the folder exists, or a bundle may not be signed.
    """
    if folder.exists():
        raise RefusedError(f"{folder} exists: name a new folder, or `edgewise sign {folder}` to add a signature")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    index: list[dict[str, str]] = []
    for role, group in bundles.items():
        signed = metadata.add_files(trusted[role], [b.signed for b in group], now=now)
        files.write(
            partial / "metadata" / f"{quote(role, safe='')}.json", encode(metadata.sign_role(signed, signers[role]))
        )
        for bundle in group:
            # The registry serves inference bundles, and asks for the lineage of those alone.
            if bundle.manifest.kind == "inference":
                envelope = attestation.attest(bundle, signers[role])
                files.write_json(partial / "attestations" / f"{bundle.signed.sha256}.json", envelope)
            _place(bundle.source, partial / "blobs" / bundle.signed.sha256)
            index.append({"role": role, "path": bundle.signed.path, "sha256": bundle.signed.sha256})
    files.write_json(partial / INDEX, {"spec_version": "1.0", "channel": channel, "files": index})
    try:
        partial.replace(folder)
    except OSError as error:
        raise FilesError(f"{folder} cannot be made: {error.strerror or error}") from error
    return load(folder)


def load(folder: Path) -> Release:
    """Read a release folder, and hold its bundles against the metadata in it.

    Raises:
        FilesError: it is not one.
        TrustError: a bundle is not the one that its metadata name.
    """
    document = files.read_json(folder / INDEX)
    roles = {
        unquote(p.name.removesuffix(".json")): parse(files.read(p), p.name)
        for p in sorted((folder / "metadata").glob("*.json"))
    }
    found: dict[str, SignedFile] = {}
    try:
        channel = str(document["channel"])
        for row in document["files"]:
            target = roles[row["role"]].signed.targets.get(row["path"])
            if target is None:
                raise TrustError(f"{folder}: its metadata do not name {row['path']!r}")
            found[row["path"]] = from_target_file(target)
    except (KeyError, TypeError) as error:
        raise FilesError(f"{folder / INDEX} is not a release: {error}") from error
    release = Release(folder, channel, roles, found)
    for file in found.values():
        try:
            with release.blob(file).open("rb") as stream:
                check_file(stream, file)
        except OSError as error:
            raise FilesError(f"{release.blob(file)} cannot be read: {error.strerror or error}") from error
    return release


def cosign(release: Release, signers: Mapping[str, Sequence[Signer]]) -> int:
    """Add a second signer's signatures to metadata and attestations; returns how many were new."""
    added = 0
    for role, document in release.roles.items():
        new = [s for s in signers.get(role, ()) if s.public_key.keyid not in document.signatures]
        added += metadata.cosign(document, new)
        files.write(release.path / "metadata" / f"{quote(role, safe='')}.json", encode(document))
        for file in release.files.values():
            envelope = release.attestation(file)
            if file.path in document.signed.targets and envelope is not None:
                envelope = attestation.cosign(envelope, new)
                files.write_json(release.path / "attestations" / f"{file.sha256}.json", envelope)
    return added


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not target.exists():
            os.link(source, target)
    except OSError:
        # Another file system, or one without hard links.
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise FilesError(f"{source} cannot be copied: {error.strerror or error}") from error
