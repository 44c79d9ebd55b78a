"""Danger: a bundle that says one thing in its manifest and holds another."""

from __future__ import annotations

import io
import zipfile

import msgspec
import pytest
from edgewise_protocol.bounds import CHUNK_BYTES
from edgewise_protocol.bundle import BundleReader, file_entry, sha256_of, write_bundle
from edgewise_protocol.chunks import ChunkIndex, build_index, chunk_count, iter_chunks
from edgewise_protocol.errors import (
    BundleDigestError,
    BundleError,
    ChunkError,
    MalformedError,
    ProtocolError,
    UnsupportedVersionError,
)
from edgewise_protocol.manifest import Golden, Manifest, Requirements, TensorSpec, decode_manifest, encode_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

FILES = {"model.onnx": b"weights" * 100, "golden.safetensors": b"gold", "baseline.json": b"{}"}


def manifest_of(contents: dict[str, bytes], /, **changes: object) -> Manifest:
    tensor = TensorSpec(name="x", dtype="FP32", shape=(-1, 4))
    fields: dict[str, object] = {
        "spec_version": "1.0",
        "kind": "inference",
        "model": "digits",
        "version": 3,
        "profile": "x86-64",
        "requires": Requirements(engine="onnxruntime"),
        "files": tuple(file_entry(n, d) for n, d in contents.items()),
        "inputs": (tensor,),
        "outputs": (tensor,),
        "model_file": "model.onnx",
        "golden": Golden(file="golden.safetensors", samples=1, atol=1e-4, rtol=1e-4),
        "baseline_file": "baseline.json",
    }
    return Manifest(**(fields | changes))  # type: ignore[arg-type]


def packed(files: dict[str, bytes] = FILES) -> bytes:
    out = io.BytesIO()
    write_bundle(out, manifest_of(files), files)
    return out.getvalue()


def test_a_bundle_reads_back_and_is_deterministic() -> None:
    reader = BundleReader(io.BytesIO(packed()))
    assert reader.verify() == manifest_of(FILES)
    assert reader.read("model.onnx") == FILES["model.onnx"]
    assert packed() == packed(dict(reversed(FILES.items()))) or manifest_of(FILES) != manifest_of(
        dict(reversed(FILES.items()))
    )
    assert packed() == packed()


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_flipped_byte_is_refused_or_changes_nothing_that_is_read(data: st.DataObject) -> None:
    raw = bytearray(packed())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        reader = BundleReader(io.BytesIO(bytes(raw)))
        manifest = reader.verify()
        contents = {name: reader.read(name) for name in FILES}
    except ProtocolError:
        return
    # A flip in zip housekeeping (a date, a permission) or in the manifest's own text may pass here:
    # the TUF digest over the whole file is what refuses it. The files read must be the listed ones.
    assert {e.name: e for e in manifest.files} == {n: file_entry(n, d) for n, d in contents.items()}


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_with_our_error(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        BundleReader(io.BytesIO(raw))


def test_a_changed_file_is_named() -> None:
    raw = packed().replace(b"weights", b"poisons")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        BundleReader(io.BytesIO(raw)).verify()


def test_compressed_and_extra_members_are_refused() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b"0" * 10_000_000)
    with pytest.raises(BundleError, match="compressed"):
        BundleReader(out)
    out = io.BytesIO(packed())
    with zipfile.ZipFile(out, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr("../../evil", b"x")
    with pytest.raises(BundleError, match="not those"):
        BundleReader(out)


def test_writing_what_the_manifest_does_not_say_is_refused() -> None:
    with pytest.raises(BundleError, match="lists"):
        write_bundle(io.BytesIO(), manifest_of(FILES), {**FILES, "extra": b""})
    with pytest.raises(BundleError, match="does not match"):
        write_bundle(io.BytesIO(), manifest_of(FILES), {**FILES, "baseline.json": b"other"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_file": "absent.onnx"}, "not among its files"),
        ({"golden": None}, "needs model_file"),
        ({"kind": "training"}, "training section"),
        ({"files": (file_entry("manifest.json", b""),)}, "itself"),
    ],
)
def test_an_inconsistent_manifest_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        decode_manifest(encode_manifest(manifest_of(FILES, **change)))


def test_unknown_fields_are_accepted_and_unknown_majors_refused() -> None:
    raw = msgspec.json.decode(encode_manifest(manifest_of(FILES)))
    assert decode_manifest(msgspec.json.encode({**raw, "later": 1, "spec_version": "1.9"})).version == 3
    with pytest.raises(UnsupportedVersionError):
        decode_manifest(msgspec.json.encode({**raw, "spec_version": "2.0"}))
    with pytest.raises(MalformedError):
        decode_manifest(msgspec.json.encode({**raw, "model": "../x"}))
    with pytest.raises(MalformedError):
        decode_manifest(msgspec.json.encode({**raw, "model": "digits\n"}))


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_chunks_are_verified_one_by_one(length: int) -> None:
    content = bytes(range(256)) * (length // 256 + 1)
    content = content[:length]
    digest, size = sha256_of(io.BytesIO(content))
    raw = build_index(io.BytesIO(content))
    index_sha, _ = sha256_of(io.BytesIO(raw))
    index = ChunkIndex(raw, sha256=index_sha, file_sha256=digest, file_length=size)
    chunks = list(iter_chunks(io.BytesIO(content)))
    assert len(index) == len(chunks) == chunk_count(length)
    for n, chunk in enumerate(chunks):
        index.check(n, chunk)
        assert index.size(n) == len(chunk)
        with pytest.raises(ChunkError, match="tampered"):
            index.check(n, chunk + b"x")
    with pytest.raises(BundleDigestError):
        ChunkIndex(raw + b"x", sha256=index_sha, file_sha256=digest, file_length=size)
    with pytest.raises(BundleDigestError):
        ChunkIndex(raw, sha256=index_sha, file_sha256=digest, file_length=size + 2 * CHUNK_BYTES)


def test_a_long_directory_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError("the directory was read")

    packed_before, out = packed(), io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for n in range(100):
            archive.writestr(f"f{n}", b"")
    monkeypatch.setattr(zipfile, "ZipFile", read)
    with pytest.raises(BundleError, match="100 members"):
        BundleReader(io.BytesIO(out.getvalue()))
    for data in (
        packed_before + b"comment",
        b"PK",
        out.getvalue()[:-22] + b"PK\x06\x07" + bytes(16) + packed_before[-22:],
    ):
        with pytest.raises(BundleError):
            BundleReader(io.BytesIO(data))
