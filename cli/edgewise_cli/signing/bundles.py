"""What there is to say of a bundle file: digest, length, chunk index, target path, custom."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from edgewise_protocol.bundle import BundleReader, sha256_of
from edgewise_protocol.chunks import build_index
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.manifest import Manifest
from edgewise_protocol.targets import SignedFile, bundle_path, custom_for, training_path

from edgewise_cli.errors import FilesError, RefusedError, TrustError


@dataclass(frozen=True)
class BundleFile:
    """A checked bundle on this machine, as the target that it will be."""

    source: Path
    signed: SignedFile
    manifest: Manifest
    provenance: bytes
    """The in-toto statement in the bundle; a training bundle may have none."""


def is_proven(manifest: Manifest) -> bool:
    """Whether its golden answers were found again on its board's instruction set, by its own word; others have none."""
    machine = manifest.requires.machine
    proofs = manifest.numerics.proofs if manifest.numerics else ()
    return manifest.kind != "inference" or any(machine in ("", proof.machine) for proof in proofs)


def read_bundle(source: Path, channel: str) -> BundleFile:
    """Check a bundle file against its own manifest, and describe it as a target of `channel`.

    Raises:
        FilesError: it cannot be read.
        RefusedError: it is damaged, or says nothing of where it comes from.
    """
    try:
        with source.open("rb") as stream:
            reader = BundleReader(stream)
            manifest = reader.verify()
            provenance = reader.read(manifest.provenance_file) if manifest.provenance_file else b""
            digest, length, index = describe(stream)
    except OSError as error:
        raise FilesError(f"{source} cannot be read: {error.strerror or error}") from error
    except ProtocolError as error:
        raise RefusedError(f"{source.name}: {error}", code=error.code) from error
    if not provenance and manifest.kind == "inference":
        raise RefusedError(f"{source.name} holds no provenance statement: it cannot be signed")
    if manifest.kind == "training":
        path = training_path(channel, manifest.model, manifest.version)
    else:
        path = bundle_path(channel, manifest.model, manifest.profile, manifest.version)
    signed = SignedFile(path=path, length=length, sha256=digest, custom=custom_for(manifest, index))
    return BundleFile(source, signed, manifest, provenance)


def describe(stream: BinaryIO) -> tuple[str, int, str]:
    """Digest, length in bytes and chunk index digest of a seekable file."""
    stream.seek(0)
    digest, length = sha256_of(stream)
    stream.seek(0)
    return digest, length, sha256(build_index(stream)).hexdigest()


def check_file(stream: BinaryIO, file: SignedFile) -> None:
    """Hold a file's bytes against what is to be signed of it.

    Raises:
        TrustError: the digest, the length or the chunk index differs.
    """
    digest, length, index = describe(stream)
    for what, found, said in (
        ("digest", digest, file.sha256),
        ("length", length, file.length),
        ("chunk index", index, file.custom.chunk_index),
    ):
        if found != said:
            raise TrustError(f"{file.path}: the {what} of the bytes is {found}; {said} was to be signed")
