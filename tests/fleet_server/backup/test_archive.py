"""Danger: an archive that was damaged, changed or made up by others is restored, or writes outside of its folder."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from edgewise_server.backup.archive import (
    ArchiveReader,
    ArchiveWriter,
    Column,
    FileEntry,
    Manifest,
    TableEntry,
    is_name,
)
from edgewise_server.backup.errors import ArchiveError, BackupError, NewerArchiveError
from hypothesis import given
from hypothesis import strategies as st

ROWS = b'[1,"a"]\n'


def made(path: Path) -> Path:
    with ArchiveWriter(path) as archive:
        archive.add("tables/devices.jsonl", io.BytesIO(ROWS), len(ROWS))
        archive.add("state/keys/director.pem", io.BytesIO(b"key"), 3)
        archive.finish(manifest(archive.files))
    return path


def manifest(files: tuple[FileEntry, ...], **changes: Any) -> Manifest:
    table = TableEntry("devices", (Column("id", "plain"), Column("name", "plain")), 1)
    values: dict[str, Any] = {
        "format": 1,
        "created_at": 1.0,
        "server_version": "0.1.0",
        "schema_revision": "0002",
        "database": "sqlite",
        "with_keys": True,
        "tables": (table,),
        "files": files,
    }
    return Manifest(**(values | changes))


def rewritten(path: Path, change: Any) -> Path:
    """The archive with its members changed: `change` gets and returns (member, content) pairs."""
    with tarfile.open(path) as tar:
        members = [(m, tar.extractfile(m).read() if m.isreg() else b"") for m in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for member, data in change(members):
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def read(path: Path) -> dict[str, bytes]:
    with ArchiveReader(path) as archive:
        archive.verify(lambda _: None)
        return {entry.name: b"".join(archive.pieces(entry.name)) for entry in archive.manifest.files}


def test_what_goes_in_comes_out_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = made(tmp_path / "b.tar")
    assert read(path) == {"tables/devices.jsonl": ROWS, "state/keys/director.pem": b"key"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["b.tar"]


def test_an_archive_appears_whole_or_not_at_all_and_replaces_none(tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    with pytest.raises(ZeroDivisionError), ArchiveWriter(path) as archive:
        archive.add("state/crl.pem", io.BytesIO(b"x"), 1)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BackupError, match="replaces none"):
        ArchiveWriter(made(path))
    with pytest.raises(BackupError, match="cannot be written"):
        ArchiveWriter(tmp_path / "nowhere" / "b.tar")


def test_a_source_that_is_shorter_than_announced_is_no_backup(tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path / "b.tar") as archive, pytest.raises(BackupError, match=r"crl\.pem"):
        archive.add("state/crl.pem", io.BytesIO(b"x"), 2)


def test_every_byte_counts(tmp_path: Path) -> None:
    original = made(tmp_path / "b.tar").read_bytes()
    end = original.rindex(b"}") + 1
    contents = [original.index(ROWS), original.index(b"key\0"), original.index(b'{"format"'), end - 2]
    for at in contents:
        changed = bytearray(original)
        changed[at] ^= 1
        (tmp_path / "c.tar").write_bytes(changed)
        with pytest.raises(ArchiveError):
            read(tmp_path / "c.tar")
    for length in (0, 100, 511, 512, 1500, end - 1):
        (tmp_path / "c.tar").write_bytes(original[:length])
        with pytest.raises(ArchiveError):
            read(tmp_path / "c.tar")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "state/../../x", "state/keys/../../x", "keys/a", "blobs/" + "G" * 64, "state/x.db"]
)
def test_a_member_that_would_lie_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    path = rewritten(made(tmp_path / "b.tar"), lambda members: [(tarfile.TarInfo(name), b"x"), *members])
    with pytest.raises(ArchiveError, match="no backup holds"):
        read(path)
    with ArchiveWriter(tmp_path / "c.tar") as archive, pytest.raises(BackupError):
        archive.add(name, io.BytesIO(b"x"), 1)


@given(st.text(alphabet="ab./\\-_@ \n\0stekyroupldjon0", max_size=40))
def test_no_name_leaves_its_folder(name: str) -> None:
    for candidate in (name, f"state/keys/{name}", f"state/broker/{name}", f"uploads/{name}.safetensors"):
        if is_name(candidate):
            assert Path("/s", candidate).resolve() == Path("/s", candidate)
            assert "\n" not in candidate and "\0" not in candidate


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_a_member_that_is_no_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("state/crl.pem")
    link.type, link.linkname = kind, "/etc/passwd"
    path = rewritten(made(tmp_path / "b.tar"), lambda members: [(link, b""), *members])
    with pytest.raises(ArchiveError, match="no backup holds"):
        read(path)


def test_a_name_that_comes_twice_or_that_the_manifest_does_not_know_is_refused(tmp_path: Path) -> None:
    twice = rewritten(made(tmp_path / "b.tar"), lambda members: [members[0], *members])
    with pytest.raises(ArchiveError, match="no backup holds"):
        read(twice)
    more = rewritten(made(tmp_path / "c.tar"), lambda members: [(tarfile.TarInfo("state/crl.pem"), b"x"), *members])
    with pytest.raises(ArchiveError, match="changed"):
        read(more)
    less = rewritten(made(tmp_path / "d.tar"), lambda members: members[1:])
    with pytest.raises(ArchiveError, match="changed"):
        read(less)


def test_a_newer_format_says_that_a_newer_server_is_needed(tmp_path: Path) -> None:
    def newer(members: list[Any]) -> list[Any]:
        *rest, (member, data) = members
        return [*rest, (member, json.dumps(json.loads(data) | {"format": 2, "files": 7}).encode())]

    with pytest.raises(NewerArchiveError, match="newer server"):
        read(rewritten(made(tmp_path / "b.tar"), newer))


def test_a_manifest_that_gives_a_blob_another_digest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    with ArchiveWriter(path) as archive:
        archive.add("tables/devices.jsonl", io.BytesIO(ROWS), len(ROWS))
        archive.add("blobs/" + "0" * 64, io.BytesIO(b"x"), 1)
        archive.finish(manifest(archive.files))
    with pytest.raises(ArchiveError, match="not what the manifest says"):
        read(path)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(msgspec.json.encode({"format": 1}) * 1000)
    for path in (tmp_path / "x", tmp_path / "absent", tmp_path):
        with pytest.raises(ArchiveError):
            read(path)
