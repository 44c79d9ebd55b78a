"""The bundle file: a zip of stored (uncompressed) members with fixed dates, manifest first.

The format is deterministic: equal manifest and files give equal bytes. Reading trusts
nothing: member names must be those of the manifest, sizes are bounded by it, and every
digest is checked. Signing and transport are elsewhere.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
from collections.abc import Mapping
from typing import BinaryIO, Final

from edgewise_protocol.bounds import MAX_BUNDLE_FILES, MAX_MANIFEST_BYTES
from edgewise_protocol.errors import BundleError
from edgewise_protocol.manifest import MANIFEST_FILE, FileEntry, Manifest, decode_manifest, encode_manifest

SUFFIX: Final = ".ewb"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_READ: Final = 1 << 20
_END: Final = struct.Struct("<4s4H2IH")
_ZIP64_LOCATOR: Final = 20
_MAX_DIRECTORY_BYTES: Final = 64 * 1024


def file_entry(name: str, data: bytes) -> FileEntry:
    """The manifest's entry for a file of these bytes."""
    return FileEntry(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def write_bundle(out: BinaryIO, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Write a bundle to a seekable binary file.

    Raises:
        BundleError: `files` are not exactly those that the manifest lists, or differ from it.
    """
    if set(files) != {entry.name for entry in manifest.files}:
        raise BundleError("the files given are not those that the manifest lists")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, data in [(MANIFEST_FILE, encode_manifest(manifest)), *sorted(files.items())]:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
        for entry in manifest.files:
            if file_entry(entry.name, files[entry.name]) != entry:
                raise BundleError(f"{entry.name} does not match the manifest")


class BundleReader:
    """Reads a bundle from a seekable binary file that stays open while this is used.

    Raises:
        BundleError: the archive is damaged, or differs from its manifest.
        MalformedError, UnsupportedVersionError: its manifest is not valid.
    """

    def __init__(self, source: BinaryIO) -> None:
        try:
            _check_directory(source)
            self._archive = zipfile.ZipFile(source, "r")
            members = self._archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, OverflowError) as error:
            raise BundleError(f"this is not a bundle: {error}") from error
        if len(members) > MAX_BUNDLE_FILES + 1:
            raise BundleError(f"the bundle has {len(members)} members; at most {MAX_BUNDLE_FILES + 1} are allowed")
        if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members):
            raise BundleError("the bundle holds compressed members; only stored ones are allowed")
        self._members = {m.filename: m for m in members}
        if len(self._members) != len(members) or MANIFEST_FILE not in self._members:
            raise BundleError("the bundle holds a member twice, or no manifest")
        self.manifest = decode_manifest(self._member(MANIFEST_FILE, MAX_MANIFEST_BYTES))
        listed = {entry.name: entry for entry in self.manifest.files}
        if set(listed) | {MANIFEST_FILE} != set(self._members):
            raise BundleError("the bundle's members are not those that its manifest lists")
        for name, entry in listed.items():
            if self._members[name].file_size != entry.size:
                raise BundleError(f"{name} has {self._members[name].file_size} bytes; the manifest says {entry.size}")
        self._listed = listed

    def _member(self, name: str, limit: int) -> bytes:
        member = self._members[name]
        if member.file_size > limit:
            raise BundleError(f"{name} has {member.file_size} bytes; at most {limit} are allowed")
        try:
            with self._archive.open(member) as stream:
                data = stream.read(limit + 1)
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
            raise BundleError(f"{name} cannot be read: {error}") from error
        if len(data) != member.file_size:
            raise BundleError(f"{name} is truncated")
        return data

    def read(self, name: str) -> bytes:
        """One file's bytes, its digest checked."""
        entry = self._listed.get(name)
        if entry is None:
            raise BundleError(f"the bundle holds no {name!r}")
        data = self._member(name, entry.size)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleError(f"{name} does not have the digest that the manifest says")
        return data

    def verify(self) -> Manifest:
        """Check every file against the manifest, and return the manifest."""
        for name in self._listed:
            self.read(name)
        return self.manifest


def _check_directory(source: BinaryIO) -> None:
    """Bound the list of members before `zipfile` makes an object of each: a bundle ends with it, uncommented."""
    source.seek(0, 2)
    end = source.tell()
    source.seek(max(0, end - _END.size - _ZIP64_LOCATOR))
    tail = source.read(_END.size + _ZIP64_LOCATOR)
    source.seek(0)
    if len(tail) < _END.size:
        raise BundleError("this is not a bundle: it is too short")
    signature, _, _, here, members, size, _, comment = _END.unpack(tail[-_END.size :])
    if signature != b"PK\x05\x06" or comment or tail[: -_END.size].startswith(b"PK\x06\x07"):
        raise BundleError("this is not a bundle: it does not end with a plain zip directory")
    if max(here, members) > MAX_BUNDLE_FILES + 1 or size > _MAX_DIRECTORY_BYTES:
        raise BundleError(f"the bundle has {members} members; at most {MAX_BUNDLE_FILES + 1} are allowed")


def sha256_of(source: BinaryIO) -> tuple[str, int]:
    """Digest and length of a file, read in pieces from its current position."""
    digest, length = hashlib.sha256(), 0
    while piece := source.read(_READ):
        digest.update(piece)
        length += len(piece)
    return digest.hexdigest(), length
